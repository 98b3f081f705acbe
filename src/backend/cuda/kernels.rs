//! The kernels by name: a misspelt one, or one with another's arguments, does not compile.

use super::abi::*;
use crate::backend::DType;
use std::marker::PhantomData;

/// A kernel that takes one structure `A` of arguments.
pub struct Kernel<A> {
    name: &'static str,
    arguments: PhantomData<fn(&A)>,
}

impl<A> Kernel<A> {
    const fn named(name: &'static str) -> Self {
        Self { name, arguments: PhantomData }
    }
    /// Its name in `kernels/`.
    pub fn name(&self) -> &'static str {
        self.name
    }
}

impl<A> Clone for Kernel<A> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<A> Copy for Kernel<A> {}

// As build.rs reads them in `kernels/`.
include!(concat!(env!("OUT_DIR"), "/names.rs"));
