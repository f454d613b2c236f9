//! Damage to files, drawn from a seed: to bytes, to the JSON of a file (or of the header of a safetensors file), to its text.

use onestep::rng::Philox;
use serde_json::{Map, Value, json};

pub struct Mutator(Philox);

impl Mutator {
    pub fn new(case: u64) -> Self {
        Self(Philox::new(11, case))
    }

    /// One to three damages.
    pub fn damaged(&mut self, whole: &[u8]) -> Vec<u8> {
        let mut bytes = whole.to_vec();
        for _ in 0..1 + self.0.below(3) {
            bytes = match self.0.below(3) {
                0 => self.bytes(bytes),
                1 => self.text(bytes),
                _ => self.structure(bytes),
            };
        }
        bytes
    }

    fn place(&mut self, bytes: &[u8]) -> usize {
        self.0.below(bytes.len() + 1)
    }

    fn bytes(&mut self, mut bytes: Vec<u8>) -> Vec<u8> {
        let (a, b) = (self.place(&bytes), self.place(&bytes));
        let (from, to) = (a.min(b), a.max(b));
        match self.0.below(6) {
            0 => bytes.truncate(from),
            1 if !bytes.is_empty() => (0..=self.0.below(4)).for_each(|_| {
                let at = self.0.below(bytes.len());
                bytes[at] ^= 1 << self.0.below(8);
            }),
            2 => drop(bytes.drain(from..to.min(from + 16))),
            3 => bytes.extend_from_within(from..to),
            4 => bytes.splice(from..from, [0xff, 0xfe, 0, b'"', b'[']).for_each(drop),
            _ => {
                // The length of a safetensors header, or whatever stands first.
                let n = bytes.len() as u64;
                let first = *self.0.choose(&[0, 1, 7, n, n - 8.min(n), 100_000_001, 1 << 40, 1 << 63, u64::MAX]);
                let end = bytes.len().min(8);
                bytes[..end].copy_from_slice(&first.to_le_bytes()[..end]);
            }
        }
        bytes
    }

    /// Numbers and words of the text are replaced, where it is one.
    fn text(&mut self, bytes: Vec<u8>) -> Vec<u8> {
        let words =
            ["NaN", "-1", "1e999", "18446744073709551616", "null", "Infinity", "{", "]", "\"\\ud800\"", ",", ""];
        let starts: Vec<usize> = (0..bytes.len()).filter(|&i| bytes[i].is_ascii_alphanumeric()).collect();
        if starts.is_empty() {
            return bytes;
        }
        let from = *self.0.choose(&starts);
        let length = bytes[from..].iter().take_while(|b| b.is_ascii_alphanumeric() || **b == b'.').count();
        let word: &[u8] = self.0.choose(&words).as_bytes();
        [&bytes[..from], word, &bytes[from + length..]].concat()
    }

    /// A line of the file or the header of a safetensors file, as JSON.
    fn structure(&mut self, bytes: Vec<u8>) -> Vec<u8> {
        if let Some((header, data)) = parted(&bytes) {
            let header = self.json(header);
            return [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat();
        }
        if let Ok(value) = serde_json::from_slice(&bytes) {
            return self.json(value).into_bytes();
        }
        let Ok(text) = std::str::from_utf8(&bytes) else { return self.bytes(bytes) };
        let mut lines: Vec<String> = text.lines().map(str::to_string).collect();
        if lines.is_empty() {
            return bytes;
        }
        let at = self.0.below(lines.len());
        if let Ok(value) = serde_json::from_str(&lines[at]) {
            lines[at] = self.json(value);
        }
        lines.join("\n").into_bytes()
    }

    fn json(&mut self, mut value: Value) -> String {
        let nodes = count(&value);
        let mut place = self.0.below(nodes);
        match self.0.below(5) {
            0 => {
                // A key twice, which no JSON value can say.
                let text = value.to_string();
                return text.replacen('{', &format!("{{\"{}\":{},", self.key(&value), self.other()), 1);
            }
            1 => at(&mut value, &mut place, &mut |value| match value {
                Value::Object(map) => drop(map.shift_remove(&map.keys().next().cloned().unwrap_or_default())),
                Value::Array(list) => drop(list.pop()),
                other => *other = Value::Null,
            }),
            2 => {
                let other = self.other();
                at(&mut value, &mut place, &mut |value| {
                    *value = match value.take() {
                        Value::Array(list) => Value::Array([list.clone(), list, vec![other.clone()]].concat()),
                        inner => json!([inner]),
                    };
                });
            }
            _ => {
                let other = self.other();
                at(&mut value, &mut place, &mut |value| *value = other.clone());
            }
        }
        value.to_string()
    }

    fn key(&mut self, value: &Value) -> String {
        let keys: Vec<String> =
            value.as_object().map_or(vec![], |map: &Map<String, Value>| map.keys().cloned().collect());
        if keys.is_empty() { "x".into() } else { self.0.choose(&keys).clone() }
    }

    /// A value that fits nowhere, or nearly.
    fn other(&mut self) -> Value {
        let number = self.0.below(300_000);
        match self.0.below(16) {
            0 => Value::Null,
            1 => json!(true),
            2 => json!(-1),
            3 => json!(0),
            4 => json!(u64::MAX),
            5 => json!(1u64 << 40),
            6 => json!(number),
            7 => json!(1e308),
            8 => json!(0.5),
            9 => json!(""),
            10 => json!("../../etc/passwd"),
            11 => json!("/etc/passwd"),
            12 => json!("(".repeat(50)),
            13 => json!("ä\u{0}".repeat(500)),
            14 => (0..120).fold(json!([]), |inner, _| json!([inner])),
            _ => json!({"x": [1, {"y": "z"}]}),
        }
    }
}

fn parted(bytes: &[u8]) -> Option<(Value, &[u8])> {
    let end = 8usize.checked_add(usize::try_from(u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?)).ok()?)?;
    Some((serde_json::from_slice(bytes.get(8..end)?).ok()?, &bytes[end..]))
}

/// Nodes of a value.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(count).sum(),
        Value::Object(map) => map.values().map(count).sum::<usize>(),
        _ => 0,
    }
}

/// Lets `change` have the node that is `place` nodes further, in depth-first order.
fn at(value: &mut Value, place: &mut usize, change: &mut dyn FnMut(&mut Value)) {
    if *place == 0 {
        *place = usize::MAX;
        return change(value);
    }
    *place -= 1;
    match value {
        Value::Array(list) => list.iter_mut().for_each(|inner| step(inner, place, change)),
        Value::Object(map) => map.values_mut().for_each(|inner| step(inner, place, change)),
        _ => {}
    }
}

fn step(value: &mut Value, place: &mut usize, change: &mut dyn FnMut(&mut Value)) {
    if *place < usize::MAX / 2 {
        at(value, place, change);
    }
}
