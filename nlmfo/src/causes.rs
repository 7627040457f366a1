//! Errors with their causes. A message does not repeat its cause; [`chain`] shows both in a
//! report or sentence.

use std::error::Error;

/// An error and its causes on one line, each once: messages of other crates often end with their
/// cause.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io;
    use std::path::Path;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("reading x: {source}")]
    struct Twice {
        source: io::Error,
    }

    #[test]
    fn a_cause_that_a_message_ends_with_is_not_repeated() {
        let twice = Twice {
            source: io::Error::other("no such thing"),
        };
        assert_eq!(chain(&twice), "reading x: no such thing");
        let error = anyhow::Error::from(twice).context("starting");
        assert_eq!(chain(&*error), "starting: reading x: no such thing");
    }

    /// What the attributes of an error's variant say, with what follows up to the next one.
    fn attributes(text: &str) -> impl Iterator<Item = &str> {
        text.split("#[error(").skip(1)
    }

    fn sources(folder: &Path, files: &mut Vec<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, files);
            } else if !path.ends_with("causes.rs") {
                files.push(fs::read_to_string(&path).unwrap());
            }
        }
    }

    #[test]
    fn no_message_of_ours_repeats_its_cause() {
        let mut files = Vec::new();
        sources(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
            &mut files,
        );
        let mut wrong = Vec::new();
        for attribute in files.iter().flat_map(|text| attributes(text)) {
            let (message, variant) = attribute.split_once(")]").unwrap_or((attribute, ""));
            let is_named = message.contains("{source}") || message.contains("chain(.");
            // A variant of one value, which is its cause.
            let value = variant.split('\n').nth(1).unwrap_or_default();
            let is_cause = value.contains("(#[source]") || value.contains("(#[from]");
            if is_named || (is_cause && message.contains("{0")) {
                wrong.push(message.trim());
            }
        }
        assert!(wrong.is_empty(), "these show their cause: {wrong:#?}");
    }
}
