//! The naming rules over real catalogues.
