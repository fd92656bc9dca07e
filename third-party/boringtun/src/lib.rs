// Copyright (c) 2019 Cloudflare, Inc. All rights reserved.
// SPDX-License-Identifier: BSD-3-Clause

//! Sessions of the WireGuard protocol: the `noise` module of boringtun 0.7.1, with the changes that README.md lists.
#![allow(warnings, clippy::all, clippy::pedantic, clippy::restriction, clippy::nursery)]

pub mod noise;

pub(crate) mod sleepyinstant;

/// Re-export of the x25519 types
pub mod x25519 {
    pub use x25519_dalek::{
        EphemeralSecret, PublicKey, ReusableSecret, SharedSecret, StaticSecret,
    };
}
