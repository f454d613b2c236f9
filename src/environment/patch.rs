//! Applies the search/replace patch of the action Edit Script. Pure text in, text out.
//!
//! A `search` without a newline names one line by its beginning: the only line that starts with it or, if several do,
//! the only one that equals it. That whole line is replaced. A `search` with a newline names a passage, which must
//! occur exactly once. A fragment from within a line names nothing, because it may easily occur in another line.

/// Reason why a patch does not apply. The text is shown to the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// `search` is empty or white space.
    #[error("search is empty")]
    Empty,
    /// Nothing matches `search`.
    #[error("search not found: no line begins with it, and it is no passage of whole lines")]
    Absent,
    /// More than one place matches.
    #[error("search not unique: it matches {count} places; make it longer")]
    Ambiguous {
        /// Number of matches.
        count: usize,
    },
    /// The patch would leave the text as it is.
    #[error("the patch changes nothing")]
    NoChange,
}

impl PatchError {
    /// The reason in a few words, for the compact prompt.
    pub fn short(self) -> &'static str {
        match self {
            PatchError::Empty => "search is empty",
            PatchError::Absent => "search not found",
            PatchError::Ambiguous { .. } => "search not unique",
            PatchError::NoChange => "no change",
        }
    }
}

/// Replaces the one place of `text` that `search` names. A replaced line keeps its newline.
pub fn apply(text: &str, search: &str, replace: &str) -> Result<String, PatchError> {
    if search.trim().is_empty() {
        return Err(PatchError::Empty);
    }
    let (start, end) = if search.contains('\n') { passage(text, search)? } else { line(text, search)? };
    if &text[start..end] == replace {
        return Err(PatchError::NoChange);
    }
    Ok([&text[..start], replace, &text[end..]].concat())
}

/// Byte range of the one passage equal to `search`; overlapping occurrences count.
fn passage(text: &str, search: &str) -> Result<(usize, usize), PatchError> {
    let found: Vec<usize> = text.char_indices().map(|(i, _)| i).filter(|&i| text[i..].starts_with(search)).collect();
    one(&found).map(|start| (start, start + search.len()))
}

/// Byte range of the one line that `search` names, without its newline.
fn line(text: &str, search: &str) -> Result<(usize, usize), PatchError> {
    let mut start = 0;
    let mut begins: Vec<(usize, &str)> = Vec::new();
    for line in text.split('\n') {
        if line.starts_with(search) {
            begins.push((start, line));
        }
        start += line.len() + 1;
    }
    if begins.len() > 1 {
        let equal: Vec<(usize, &str)> = begins.iter().copied().filter(|(_, line)| *line == search).collect();
        if equal.len() == 1 {
            begins = equal;
        }
    }
    one(&begins).map(|(start, line)| (start, start + line.len()))
}

fn one<T: Copy>(found: &[T]) -> Result<T, PatchError> {
    match found {
        [] => Err(PatchError::Absent),
        [only] => Ok(*only),
        _ => Err(PatchError::Ambiguous { count: found.len() }),
    }
}

/// Makes the patch, as (search, replace), that turns line `index` (from 0) of `script` into `new_line`. `search` is the
/// line's text up to " =" where no other line begins with that, else the whole line. None when no such patch names that
/// line alone (it is blank, or an equal line exists), when there is no such line, or when it is `new_line` already.
pub fn line_start_patch(script: &str, index: usize, new_line: &str) -> Option<(String, String)> {
    let mut lines: Vec<&str> = script.split('\n').collect();
    let old = *lines.get(index)?;
    lines[index] = new_line;
    let wanted = lines.join("\n");
    let head = old.find(" =").map(|at| &old[..at + 2]);
    let search = head.into_iter().chain([old]).find(|s| apply(script, s, new_line).as_ref() == Ok(&wanted))?;
    Some((search.to_string(), new_line.to_string()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SCRIPT: &str = "import numpy as np\nn = 10\nn = 100\nif n > 5:\n    k = 2\n    k = 2\nprint(n)\n";

    #[test]
    fn what_search_names() {
        let cases: [(&str, Result<&str, PatchError>); 13] = [
            ("import", Ok("X\nn = 10\nn = 100\nif n > 5:\n    k = 2\n    k = 2\nprint(n)\n")),
            ("n = 100", Ok("import numpy as np\nn = 10\nX\nif n > 5:\n    k = 2\n    k = 2\nprint(n)\n")),
            // Two lines begin with it, one equals it.
            ("n = 10", Ok("import numpy as np\nX\nn = 100\nif n > 5:\n    k = 2\n    k = 2\nprint(n)\n")),
            ("n = 1", Err(PatchError::Ambiguous { count: 2 })),
            ("    k = 2", Err(PatchError::Ambiguous { count: 2 })),
            ("k = 2", Err(PatchError::Absent)), // a fragment: the line begins with spaces
            ("numpy", Err(PatchError::Absent)),
            ("n = 10\nn = 100", Ok("import numpy as np\nX\nif n > 5:\n    k = 2\n    k = 2\nprint(n)\n")),
            ("k = 2\nprint", Ok("import numpy as np\nn = 10\nn = 100\nif n > 5:\n    k = 2\n    X(n)\n")),
            ("    k = 2\n", Err(PatchError::Ambiguous { count: 2 })),
            ("nothing\nhere", Err(PatchError::Absent)),
            ("", Err(PatchError::Empty)),
            (" \n", Err(PatchError::Empty)),
        ];
        for (search, expected) in cases {
            assert_eq!(apply(SCRIPT, search, "X").as_deref(), expected.as_ref().copied(), "{search:?}");
        }
    }

    #[test]
    fn changing_nothing_is_told_apart() {
        assert_eq!(apply(SCRIPT, "print", "print(n)"), Err(PatchError::NoChange));
        assert_eq!(apply(SCRIPT, "n = 10\nn", "n = 10\nn"), Err(PatchError::NoChange));
    }

    #[test]
    fn overlapping_passages_are_ambiguous() {
        assert_eq!(apply("a\na\na\n", "a\na", "b"), Err(PatchError::Ambiguous { count: 2 }));
    }

    #[test]
    fn shortest_natural_line_start() {
        let script = "n = 1\nk = 2\nk = 3\nprint(n)\n";
        let patch = |i, new| line_start_patch(script, i, new).map(|(search, _)| search);
        assert_eq!(patch(0, "n = 5").as_deref(), Some("n ="));
        assert_eq!(patch(1, "k = 5").as_deref(), Some("k = 2")); // "k =" begins two lines
        assert_eq!(patch(3, "print(k)").as_deref(), Some("print(n)"));
        assert_eq!(patch(4, "blank"), None);
        assert_eq!(patch(5, "beyond"), None);
        assert_eq!(patch(0, "n = 1"), None);
    }

    proptest! {
        /// A line-start patch changes its line and no other.
        #[test]
        fn line_start_patch_does_what_it_says(
            lines in prop::collection::vec("[ab ]{0,3}( = [01]{0,2})?", 1..8), index in 0usize..8, new in "[ab] = [01é]"
        ) {
            let script = lines.join("\n");
            if let Some((search, replace)) = line_start_patch(&script, index, &new) {
                let mut wanted = lines.clone();
                wanted[index] = new;
                prop_assert_eq!(apply(&script, &search, &replace).unwrap(), wanted.join("\n"));
            } else if let Some(line) = lines.get(index) {
                let twins = lines.iter().filter(|l| *l == line).count();
                prop_assert!(line.trim().is_empty() || twins > 1 || *line == new);
            }
        }

        /// A patch that applies changes the text and removes as many lines as `search` has newlines; any error is true
        /// of the text.
        #[test]
        fn apply_touches_one_place(text in "([abé]{0,2}\n){0,6}[abé]{0,2}", search in "[abé]{1,2}(\n[abé]{0,2})?", replace in "[Xé]{1,3}") {
            match apply(&text, &search, &replace) {
                Ok(new) => {
                    let before = text.split('\n').count() - search.matches('\n').count();
                    prop_assert_eq!(new.split('\n').count(), before);
                    prop_assert_ne!(new, text);
                }
                Err(PatchError::Absent) => {
                    prop_assert!(!text.contains(&search) || !search.contains('\n'));
                    prop_assert!(text.split('\n').all(|l| !l.starts_with(&search)));
                }
                Err(PatchError::Ambiguous { count }) => prop_assert!(count > 1),
                Err(PatchError::NoChange) => prop_assert!(text.contains(&replace)),
                Err(PatchError::Empty) => prop_assert!(search.trim().is_empty()),
            }
        }
    }
}
