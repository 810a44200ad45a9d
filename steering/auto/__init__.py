"""The dose of steering, estimated: weights from the calibrated posterior that a label, or a pair, is right."""
