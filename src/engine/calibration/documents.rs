//! Texts made of documents: where each came from, how a set is mixed, and what two sets share.
//!
//! A plain text is one document per paragraph block, parted by empty lines. JSONL has one object a
//! line with `text` and, where it is known, `domain`. Written with empty lines between them the
//! documents of a JSONL are a plain text too, so either form can stand for the other.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Fault, Result, Stage};
use crate::scoring::{TextCodec, TextSource};

/// Longest file of documents.
const MOST_BYTES: u64 = 1 << 30;

/// Most domains of one file: more are identifiers rather than domains.
const MOST_DOMAINS: usize = 1024;

/// One document.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Document {
    /// What kind of text it is, where the file says it.
    #[serde(default)]
    pub domain: Option<String>,
    /// The text.
    pub text: String,
}

/// Documents of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Documents {
    /// The file.
    pub path: PathBuf,
    /// In the file's order.
    pub list: Vec<Document>,
}

/// How much of a set belongs to one domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// The domain; empty where the file names none.
    pub domain: String,
    /// Documents of it.
    pub documents: usize,
    /// Tokens of it.
    pub tokens: usize,
}

impl Documents {
    /// Reads JSONL by its ending, and anything else as a plain text.
    ///
    /// # Errors
    /// A file that cannot be read, is too long or not UTF-8; a line that is no object with `text`;
    /// more domains than a mixture can show.
    pub fn read(path: &Path) -> Result<Self> {
        let is_jsonl = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("jsonl"));
        if !is_jsonl {
            return Ok(Self::of_text(&TextSource::read(path)?));
        }
        let length = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
        let fault = |cause: String| Fault::new(Stage::Calibration, cause).file(path);
        if length > MOST_BYTES {
            return Err(fault(format!("the file has {length} bytes, more than {MOST_BYTES}"))
                .fix("use a part of it")
                .into());
        }
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        let mut list = Vec::new();
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let document: Document = serde_json::from_str(line).map_err(|err| {
                fault(format!("no document with a `text`: {err}"))
                    .at(format!("line {}", index + 1))
                    .fix(r#"write one object a line: {"domain": "story", "text": "…"}"#)
            })?;
            list.push(document);
        }
        let documents = Self { path: path.to_owned(), list };
        if documents.domains().len() > MOST_DOMAINS {
            return Err(fault(format!("the file names more than {MOST_DOMAINS} domains"))
                .fix("leave `domain` out, or name fewer")
                .into());
        }
        Ok(documents)
    }

    /// The documents of a plain text, parted by empty lines.
    pub fn of_text(text: &TextSource) -> Self {
        let parts = text.text.split("\n\n").map(|part| part.trim_matches('\n')).filter(|part| !part.is_empty());
        let list = parts.map(|part| Document { domain: None, text: part.to_owned() }).collect();
        Self { path: text.path.clone(), list }
    }

    /// The documents of a text with their domains, where a JSONL of the same name lies beside it and
    /// holds the same text; else without.
    pub fn beside(text: &TextSource) -> Self {
        let with_domains = Self::read(&text.path.with_extension("jsonl")).ok();
        let is_same = |documents: &Self| documents.text().trim_end() == text.text.trim_end();
        with_domains.filter(is_same).unwrap_or_else(|| Self::of_text(text))
    }

    /// All documents as one text, parted by empty lines.
    pub fn text(&self) -> String {
        let mut text = self.list.iter().map(|document| document.text.as_str()).collect::<Vec<_>>().join("\n\n");
        text.push('\n');
        text
    }

    /// All documents as one text to read or score.
    pub fn source(&self) -> TextSource {
        TextSource::new(self.path.clone(), self.text())
    }

    /// Domains by name.
    pub fn domains(&self) -> Vec<&str> {
        let names: std::collections::BTreeSet<&str> =
            self.list.iter().filter_map(|document| document.domain.as_deref()).collect();
        names.into_iter().collect()
    }

    /// Tokens of every document, each followed by what parts it from the next.
    ///
    /// # Errors
    /// What the tokenizer refuses.
    pub fn encode(&self, codec: &dyn TextCodec) -> Result<Vec<Vec<u32>>> {
        let last = self.list.len().saturating_sub(1);
        let documents = self.list.iter().enumerate();
        documents
            .map(|(index, document)| {
                let end = if index == last { "\n" } else { "\n\n" };
                codec.encode(&format!("{}{end}", document.text))
            })
            .collect()
    }

    /// How the set is mixed, the largest share first.
    ///
    /// # Errors
    /// What the tokenizer refuses.
    pub fn mixture(&self, codec: &dyn TextCodec) -> Result<Vec<Share>> {
        let mut shares: BTreeMap<&str, Share> = BTreeMap::new();
        for (document, ids) in self.list.iter().zip(self.encode(codec)?) {
            let domain = document.domain.as_deref().unwrap_or_default();
            let fresh = || Share { domain: domain.to_owned(), documents: 0, tokens: 0 };
            let share = shares.entry(domain).or_insert_with(fresh);
            share.documents += 1;
            share.tokens += ids.len();
        }
        let mut shares: Vec<Share> = shares.into_values().collect();
        shares.sort_by(|one, other| other.tokens.cmp(&one.tokens).then(one.domain.cmp(&other.domain)));
        Ok(shares)
    }
}

/// How much of an evaluation text a calibration text holds already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlap {
    /// Tokens of a run.
    pub ngram: usize,
    /// Runs of that length in the evaluation text.
    pub runs: usize,
    /// Those that the calibration text has as well.
    pub shared: usize,
}

impl Overlap {
    /// Tokens of a run: GPT-3's test for contamination (Brown et al., 2020, appendix C).
    pub const NGRAM: usize = 13;

    /// A larger share is warned about.
    pub const MOST_SHARE: f64 = 0.01;

    /// Counts the runs of `ngram` tokens of `evaluation` that `calibration` has too. Runs do not cross
    /// documents; a shorter document counts as one run.
    pub fn count(calibration: &[Vec<u32>], evaluation: &[Vec<u32>], ngram: usize) -> Self {
        let known: HashSet<u64> = calibration.iter().flat_map(|ids| hashes(ids, ngram)).collect();
        let (mut runs, mut shared) = (0, 0);
        for hash in evaluation.iter().flat_map(|ids| hashes(ids, ngram)) {
            runs += 1;
            shared += usize::from(known.contains(&hash));
        }
        Self { ngram, runs, shared }
    }

    /// Shared runs as a share of all.
    pub fn share(&self) -> f64 {
        if self.runs == 0 { 0.0 } else { self.shared as f64 / self.runs as f64 }
    }

    /// What to tell the user, where the texts share too much.
    pub fn warning(&self) -> Option<String> {
        (self.share() > Self::MOST_SHARE).then(|| {
            format!(
                "{:.1} % of the evaluation text's runs of {} tokens are in the calibration text too ({} of {}): \
                 figures on it are better than on fresh text",
                self.share() * 100.0,
                self.ngram,
                self.shared,
                self.runs,
            )
        })
    }
}

/// A hash of every run of `ngram` tokens: FNV-1a of their bytes, 64 bits.
fn hashes(ids: &[u32], ngram: usize) -> impl Iterator<Item = u64> + '_ {
    let ngram = ngram.max(1).min(ids.len().max(1));
    ids.windows(ngram).map(|run| {
        run.iter()
            .flat_map(|id| id.to_le_bytes())
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demo(name: &str) -> PathBuf {
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("assets/demo").join(name)
    }

    #[test]
    fn the_demos_texts_are_its_documents_and_know_their_domains() {
        let text = TextSource::read(&demo("calibration.txt")).expect("reads");
        let documents = Documents::read(&demo("calibration.jsonl")).expect("reads");
        assert_eq!((documents.list.len(), documents.domains().len()), (293, 17));
        assert_eq!(documents.text().trim_end(), text.text.trim_end());
        assert_eq!(Documents::beside(&text).list, documents.list);
        let other = TextSource::new(demo("calibration.txt"), "another text\n\nof two documents");
        let without = Documents::beside(&other);
        assert_eq!((without.list.len(), without.domains().len()), (2, 0));
    }

    #[test]
    fn lines_that_are_no_documents_are_refused_by_number() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("d.jsonl");
        std::fs::write(&path, "{\"text\": \"fine\"}\n{\"domain\": \"x\"}\n").expect("writes");
        let message = Documents::read(&path).expect_err("refused").to_string();
        assert!(message.contains("line 2") && message.contains("text"), "{message}");
    }

    #[test]
    fn overlap_is_the_share_of_runs_that_both_hold() {
        let calibration = vec![(0..20).collect::<Vec<u32>>()];
        let evaluation = vec![(5..25).collect::<Vec<u32>>(), vec![3, 4]];
        // Runs of 4 from 5 to 24: 17 of them, 12 of which end before 20; the short document is one run.
        let overlap = Overlap::count(&calibration, &evaluation, 4);
        assert_eq!((overlap.runs, overlap.shared), (18, 12));
        assert!(overlap.warning().expect("too much").contains("12 of 18"));
        let none = Overlap::count(&calibration, &[(30..60).collect()], 4);
        assert_eq!((none.shared, none.warning()), (0, None));
        assert_eq!(Overlap::count(&[], &[], 13).share(), 0.0);
    }
}
