//! Tests of `gems`.
