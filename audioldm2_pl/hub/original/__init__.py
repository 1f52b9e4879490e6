"""The authors' original checkpoints (.pth, .ckpt) => a model folder in the hub's layout: `folder.import_checkpoint`.

One file a network: it reads the network's sizes off the shapes of the tensors and says where each tensor goes.
`checkpoint.py` opens the file safely and keeps account of every tensor in it; `folder.py` writes the folder.
"""
