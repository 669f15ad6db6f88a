"""What a definition file is written in: plain values that remember where they were written and check nothing."""
