"""E-Tree learning (arXiv 2008.01553): labelled data over devices, delays between them, the tree, and training over it.

The paper's full text was not at hand: what stands here follows its published figures and algorithms, and its authors' simulator
where these are silent; each module says which. Algorithms take arrays and give arrays; the readers take open files or
folders. No flags, no ranks.
"""
