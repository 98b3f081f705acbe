//! Metrics log, TensorBoard, HTML report.
