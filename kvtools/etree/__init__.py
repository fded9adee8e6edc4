"""E-Tree learning (arXiv 2008.01553): labelled data over devices, delays between them, the tree, and training over it.

Only the figures and the printed algorithms of the paper were available, not its full text. The modules follow these, and the
authors' simulator where they leave something open; each module says which. Algorithms take arrays and give arrays; the readers
take open files or folders. No flags, no ranks.
"""
