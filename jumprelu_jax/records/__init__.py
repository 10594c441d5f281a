"""Latent records: what there is to know of each latent of an SAE.

One pass over text, in memory that does not grow with it:

`encode`      text → what fires, on the devices
`firings`     what fires in a batch, sparse, on the host
`hashing`     a random order that parts of a text agree on
`samples`     a few firings of each latent, with the text around them
`counts`      how often, how strongly, on which tokens
`windows`     pieces of the text with all that fires in them
`state`       all of that, mergeable
`gather`      the pass itself

and then:

`effects`     what a latent does to the logits
`neighbours`  the latents nearest to each
`columns`, `write`  state → files
`schema`      the files, and how they are read
"""
