"""Vision models, with standard convolutions and with DCLS, and their published weights."""

from dcls_jax.models.backbone import Backbone
from dcls_jax.models.checkpoints import CheckpointError, load_weights, save_weights, state_dict
from dcls_jax.models.classes import imagenet_classes
from dcls_jax.models.convnext import ConvNeXt, ConvNeXtConfig
from dcls_jax.models.create import create_model, list_models
from dcls_jax.models.described import load_model, save_model
from dcls_jax.models.fastvit import FastViT, FastViTConfig
from dcls_jax.models.fusion import reparameterise
from dcls_jax.models.metaformer import MetaFormer, MetaFormerConfig
from dcls_jax.models.published import DownloadError
from dcls_jax.models.resnet import ResNet, ResNetConfig
from dcls_jax.models.transform import Transform, preprocess

__all__ = [
    "Backbone",
    "CheckpointError",
    "ConvNeXt",
    "ConvNeXtConfig",
    "DownloadError",
    "FastViT",
    "FastViTConfig",
    "MetaFormer",
    "MetaFormerConfig",
    "ResNet",
    "ResNetConfig",
    "Transform",
    "create_model",
    "imagenet_classes",
    "list_models",
    "load_model",
    "load_weights",
    "preprocess",
    "reparameterise",
    "save_model",
    "save_weights",
    "state_dict",
]
