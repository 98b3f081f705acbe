//! Protobuf's wire format: as much of it as events need.

/// A message under construction: fields in the order they are put.
#[derive(Debug, Clone, Default)]
pub(super) struct Message(Vec<u8>);

/// Wire types.
#[derive(Clone, Copy)]
enum Wire {
    Varint = 0,
    Fixed64 = 1,
    Bytes = 2,
    Fixed32 = 5,
}

impl Message {
    /// An integer, a bool or an enum.
    pub fn varint(mut self, field: u64, value: u64) -> Self {
        self.tag(field, Wire::Varint);
        self.push(value);
        self
    }
    /// A `double`.
    pub fn double(mut self, field: u64, value: f64) -> Self {
        self.tag(field, Wire::Fixed64);
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }
    /// A `float`.
    pub fn float(mut self, field: u64, value: f32) -> Self {
        self.tag(field, Wire::Fixed32);
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }
    /// A `string` or `bytes`.
    pub fn bytes(mut self, field: u64, value: &[u8]) -> Self {
        self.tag(field, Wire::Bytes);
        self.push(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }
    /// Another message.
    pub fn message(self, field: u64, value: Message) -> Self {
        self.bytes(field, &value.0)
    }
    /// `repeated double`, packed.
    pub fn doubles(self, field: u64, values: &[f64]) -> Self {
        let packed: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.bytes(field, &packed)
    }
    /// As it is sent.
    pub fn encoded(&self) -> &[u8] {
        &self.0
    }

    fn tag(&mut self, field: u64, wire: Wire) {
        self.push(field << 3 | wire as u64);
    }
    fn push(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}
