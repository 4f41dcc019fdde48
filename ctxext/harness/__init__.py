"""Any short task of lm-evaluation-harness, asked of a run or an HF directory: did the extension break the model?"""
