//! Tests of `simt`.
