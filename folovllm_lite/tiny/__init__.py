"""The embedded model: its corpus, its training, its measured quality.

`grammar` defines texts with known probabilities, `english` and `chinese` hold the data,
`corpus` mixes documents, `train` makes the checkpoint in `model/` and `evaluate`
measures it. Everything else in the package treats `model/` as any other checkpoint.
"""
