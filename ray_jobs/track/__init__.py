"""What a run measures, told to the trackers of experiments as well: TensorBoard, MLflow, Weights & Biases."""
