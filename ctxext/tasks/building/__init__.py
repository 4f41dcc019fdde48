"""What tasks are built from: records, haystacks, vocabularies, placement and scoring."""
