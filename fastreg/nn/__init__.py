"""Modules with the names, arguments and state_dicts of ``torch.nn``."""

from fastreg.nn.batch_norm import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    LazyBatchNorm1d,
    LazyBatchNorm2d,
    LazyBatchNorm3d,
)
from fastreg.nn.dropout import (
    AlphaDropout,
    DropConnectLinear,
    Dropout,
    Dropout1d,
    Dropout2d,
    Dropout3d,
    DropPath,
    FeatureAlphaDropout,
)
from fastreg.nn.fused import ActDropout, BatchNormAct1d, BatchNormAct2d, BatchNormAct3d, BiasActDropoutAdd
from fastreg.nn.sync_batch_norm import SyncBatchNorm, SyncBatchNormAct

__all__ = [
    "ActDropout",
    "AlphaDropout",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchNormAct1d",
    "BatchNormAct2d",
    "BatchNormAct3d",
    "BiasActDropoutAdd",
    "DropConnectLinear",
    "DropPath",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "FeatureAlphaDropout",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
    "SyncBatchNorm",
    "SyncBatchNormAct",
]
