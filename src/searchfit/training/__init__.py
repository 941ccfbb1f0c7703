"""The training room: what is learnt from, in what order, and the loop that every fitting stage runs.

`data` holds training pairs with their token ids, `batches` their order, `loop` takes the steps. The losses
are in the room below, `objectives`.
"""
