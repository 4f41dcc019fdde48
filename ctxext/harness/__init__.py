"""Tasks of lm-evaluation-harness on a run or an HF directory: did the extension break the model?"""
