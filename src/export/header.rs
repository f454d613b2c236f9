//! The header of a GGUF file: keys with typed values.

/// Metadata key-value pairs as bytes, and their number.
#[derive(Default)]
pub(super) struct Header {
    pub bytes: Vec<u8>,
    pub count: u64,
}

/// GGUF's numbers for the value types that are used.
mod value {
    pub const U32: u32 = 4;
    pub const I32: u32 = 5;
    pub const F32: u32 = 6;
    pub const BOOL: u32 = 7;
    pub const TEXT: u32 = 8;
    pub const ARRAY: u32 = 9;
}

pub(super) fn put_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

impl Header {
    fn key(&mut self, key: &str, kind: u32) {
        put_text(&mut self.bytes, key);
        self.bytes.extend(kind.to_le_bytes());
        self.count += 1;
    }

    pub fn u32(&mut self, key: &str, x: u32) {
        self.key(key, value::U32);
        self.bytes.extend(x.to_le_bytes());
    }

    pub fn f32(&mut self, key: &str, x: f32) {
        self.key(key, value::F32);
        self.bytes.extend(x.to_le_bytes());
    }

    pub fn flag(&mut self, key: &str, x: bool) {
        self.key(key, value::BOOL);
        self.bytes.push(x.into());
    }

    pub fn text(&mut self, key: &str, x: &str) {
        self.key(key, value::TEXT);
        put_text(&mut self.bytes, x);
    }

    fn array(&mut self, key: &str, kind: u32, length: usize) {
        self.key(key, value::ARRAY);
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend((length as u64).to_le_bytes());
    }

    pub fn integers(&mut self, key: &str, list: &[i32]) {
        self.array(key, value::I32, list.len());
        list.iter().for_each(|x| self.bytes.extend(x.to_le_bytes()));
    }

    pub fn texts(&mut self, key: &str, list: &[String]) {
        self.array(key, value::TEXT, list.len());
        list.iter().for_each(|x| put_text(&mut self.bytes, x));
    }
}
