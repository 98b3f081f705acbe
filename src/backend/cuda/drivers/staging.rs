//! Where uploads wait for the device: a ring of two halves in pinned memory, so that a copy to the device
//! needs neither the caller's memory nor the caller's time.

/// Which bytes of the ring are free. A half is used again only after the device has read it.
#[derive(Debug)]
pub struct Ring {
    half: usize,
    current: usize,
    at: usize,
    used: [bool; 2],
}

/// Where to put some bytes, and what to do first.
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    /// First byte in the ring.
    pub offset: usize,
    /// A half that was just filled: note when the device will have read it.
    pub filled: Option<usize>,
    /// A half that is about to be written again: wait until the device has read it.
    pub wait: Option<usize>,
}

impl Ring {
    /// A ring of two halves of `half` bytes, a multiple of 16.
    pub fn new(half: usize) -> Self {
        Self { half, current: 0, at: 0, used: [false; 2] }
    }

    /// Room for `bytes` bytes, at most half the ring; aligned to 16.
    pub fn place(&mut self, bytes: usize) -> Place {
        assert!(bytes <= self.half, "{bytes} bytes do not fit half a ring of {}", self.half);
        let bytes = bytes.next_multiple_of(16);
        if self.at + bytes <= self.half {
            let offset = self.current * self.half + self.at;
            self.at += bytes;
            return Place { offset, filled: None, wait: None };
        }
        let full = self.current;
        self.used[full] = true;
        self.current = 1 - full;
        self.at = bytes;
        let wait = self.used[self.current].then_some(self.current);
        Place { offset: self.current * self.half, filled: Some(full), wait }
    }
}
