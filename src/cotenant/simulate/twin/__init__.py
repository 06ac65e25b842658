"""A simulated GPU, kernel by kernel: the truth that policies are compared on. It knows no demand vectors, no
segments but the places where a run can stop, and nothing of any predictor of ours."""
