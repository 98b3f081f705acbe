//! Arguments of the project's kernels, as their structures in kernels/ lay them out.

use super::rig::Buffer;
use gems_witness::machine::{MAP_MAGIC, Map};

/// Arguments in the making.
#[derive(Default, Clone)]
pub struct Arguments(pub Vec<u8>);

impl Arguments {
    pub fn u64(mut self, v: u64) -> Self {
        self.0.extend(v.to_le_bytes());
        self
    }

    pub fn i32(mut self, v: i32) -> Self {
        self.0.extend(v.to_le_bytes());
        self
    }

    pub fn i32s(self, v: &[i32]) -> Self {
        v.iter().fold(self, |a, v| a.i32(*v))
    }

    pub fn f32(mut self, v: f32) -> Self {
        self.0.extend(v.to_le_bytes());
        self
    }

    pub fn zeros(mut self, n: usize) -> Self {
        self.0.extend(vec![0; n]);
        self
    }

    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    pub fn at(self, b: &Buffer) -> Self {
        self.u64(b.at())
    }

    /// A `Matrix` whose rows follow each other.
    pub fn matrix(self, b: &Buffer, rows: usize, cols: usize) -> Self {
        self.u64(b.at()).i32(rows as i32).i32(cols as i32).u64(cols as u64)
    }

    /// `n` matrices that are absent.
    pub fn absent(self, n: usize) -> Self {
        self.zeros(24 * n)
    }
}

/// A tensor map of a bf16 matrix with boxes of `tile` rows and 64 columns.
pub fn tensor_map(b: &Buffer, rows: usize, cols: usize, tile: usize) -> Vec<u8> {
    let row_bytes = (cols as u64 * 2).next_multiple_of(16);
    let map = Map {
        magic: MAP_MAGIC,
        base: b.at(),
        size: [cols as u64, rows as u64],
        row_bytes,
        tile: [64, tile as u32],
        swizzle: 3,
        element_bytes: 2,
    };
    let words = [map.magic, map.base, map.size[0], map.size[1], map.row_bytes];
    let mut bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    bytes.extend(
        [map.tile[0], map.tile[1], map.swizzle, map.element_bytes].iter().flat_map(|w| w.to_le_bytes()),
    );
    bytes.resize(128, 0);
    bytes
}
