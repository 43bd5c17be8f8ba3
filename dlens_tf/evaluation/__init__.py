"""Judging a trained regressor: metrics with errors, baselines, plots and a report.

`evaluate.evaluate_run` does all of it for a run folder; `metrics`, `summaries`, `baselines` and
`plots` are of use alone and need neither TensorFlow nor Keras.
"""
