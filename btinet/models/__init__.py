"""BTI-Net and the methods it is compared with: plain torch modules with one output contract."""
