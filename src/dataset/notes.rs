//! Collects notes on what a file holds and is not used: each note once, with its places.

use super::file::Place;

/// Notes in the order of their first place, each with its places.
#[derive(Default)]
pub struct Notes(Vec<(String, Vec<Place>)>);

impl Notes {
    /// Adds the notes of the item at `place`.
    pub fn add(&mut self, place: &Place, notes: Vec<String>) {
        for note in notes {
            match self.0.iter_mut().find(|(known, _)| *known == note) {
                Some((_, places)) => places.push(place.clone()),
                None => self.0.push((note, vec![place.clone()])),
            }
        }
    }

    /// Returns one line per note: the first place, the note, the number of items that have it.
    pub fn counted(&self) -> Vec<String> {
        let count = |places: &[Place]| match places.len() {
            1 => "1 item has it".to_string(),
            n => format!("{n} items have it"),
        };
        self.lines(count)
    }

    /// Returns one line per note, with every place.
    pub fn listed(&self) -> Vec<String> {
        let list = |places: &[Place]| {
            let units = places.first().map(Place::units).unwrap_or_default();
            format!(
                "{}: {units} {}",
                places.len(),
                ranges(&places.iter().map(|place| place.number).collect::<Vec<_>>())
            )
        };
        self.lines(list)
    }

    fn lines(&self, places: impl Fn(&[Place]) -> String) -> Vec<String> {
        let line = |(note, at): &(String, Vec<Place>)| {
            let first = at.first().map(Place::to_string).unwrap_or_default();
            format!("{first}: {note} ({})", places(at))
        };
        self.0.iter().map(line).collect()
    }
}

/// Joins runs of ascending numbers: `1-3, 7`.
fn ranges(numbers: &[usize]) -> String {
    let runs = numbers.chunk_by(|a, b| a + 1 == *b).map(|run| match run {
        [first, .., last] => format!("{first}-{last}"),
        one => one.iter().map(usize::to_string).collect(),
    });
    runs.collect::<Vec<_>>().join(", ")
}
