"""The authors' original checkpoints (.pth, .ckpt) => a model folder in the hub's layout.

One file a network: it reads the network's sizes off the shapes of the tensors and says where each tensor goes.
`checkpoint.py` opens the file safely and keeps account of every tensor in it; `folder.py` writes the folder.
"""

from audioldm2_pl.hub.original.folder import ImportReport, import_checkpoint

__all__ = ["ImportReport", "import_checkpoint"]
