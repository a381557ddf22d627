//! Finds records and their fields, as RFC 4180 has them: strictly, so that a quote in the wrong
//! place costs its record and not the rest of the file.

use std::ops::Range;

use memchr::{memchr, memchr_iter, memchr2, memrchr};

/// Maximum length of a record with quotes, in bytes. A longer one most likely lacks a closing quote.
const LONGEST: usize = 1 << 20;
/// So is a line without any, which may have many thousand fields.
const LONGEST_LINE: usize = 16 << 20;

/// What a piece of a file begins with.
pub struct Found {
    /// How many bytes it takes, the end of its line included.
    pub len: usize,
    /// How many lines it takes.
    pub lines: u64,
    pub record: Record,
}

pub enum Record {
    /// An empty line.
    Blank,
    /// The splitter has its fields.
    Fields,
    Bad(String),
}

/// Where a field's text is: in the piece itself, or, when it held doubled quotes, among the copies.
enum Field {
    InPlace(Range<usize>),
    Copied(Range<usize>),
}

/// Splits one record at a time, and keeps its fields until the next.
pub struct Splitter {
    delimiter: u8,
    fields: Vec<Field>,
    copies: Vec<u8>,
    /// In the middle of a line that was given up.
    skipping: bool,
}

impl Splitter {
    /// Fields end with `delimiter`, an ASCII character.
    pub fn new(delimiter: u8) -> Splitter {
        Splitter {
            delimiter,
            fields: Vec::new(),
            copies: Vec::new(),
            skipping: false,
        }
    }

    /// How many fields the last record has.
    pub fn count(&self) -> usize {
        self.fields.len()
    }

    /// A field of the last record, which `bytes` begins with.
    pub fn field<'a>(&'a self, index: usize, bytes: &'a [u8]) -> &'a [u8] {
        match &self.fields[index] {
            Field::InPlace(range) => &bytes[range.clone()],
            Field::Copied(range) => &self.copies[range.clone()],
        }
    }

    /// Takes the record that `bytes` begins with; None when it goes on in bytes that are to come.
    /// After the `last` bytes none are.
    pub fn next(&mut self, bytes: &[u8], last: bool) -> Option<Found> {
        self.fields.clear();
        self.copies.clear();
        if self.skipping {
            let end = memchr(b'\n', bytes).map(|end| end + 1);
            self.skipping = end.is_none();
            let len = end.unwrap_or(bytes.len());
            return Some(Found {
                len,
                lines: 0,
                record: Record::Blank,
            });
        }
        let (found, longest) = match memchr2(b'\n', b'"', bytes) {
            Some(end) if bytes[end] == b'\n' => {
                (Some(self.plain(&bytes[..end], end + 1)), LONGEST_LINE)
            }
            Some(_) => (self.quoted(bytes, last), LONGEST),
            None if last => (Some(self.plain(bytes, bytes.len())), LONGEST_LINE),
            None => (None, LONGEST_LINE),
        };
        if found.is_none() && bytes.len() > longest {
            return Some(self.give_up(bytes));
        }
        found
    }

    /// A line without quotes.
    fn plain(&mut self, line: &[u8], len: usize) -> Found {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            return Found {
                len,
                lines: 1,
                record: Record::Blank,
            };
        }
        let mut start = 0;
        for end in memchr_iter(self.delimiter, line) {
            self.fields.push(Field::InPlace(start..end));
            start = end + 1;
        }
        self.fields.push(Field::InPlace(start..line.len()));
        Found {
            len,
            lines: 1,
            record: Record::Fields,
        }
    }

    /// A record with a quote in its first line.
    fn quoted(&mut self, bytes: &[u8], last: bool) -> Option<Found> {
        let mut at = 0;
        let len = loop {
            if bytes.get(at) != Some(&b'"') {
                match memchr2(self.delimiter, b'\n', &bytes[at..]) {
                    Some(end) if bytes[at + end] == self.delimiter => {
                        self.fields.push(Field::InPlace(at..at + end));
                        at += end + 1;
                        continue;
                    }
                    None if !last => return None,
                    end => {
                        let end = end.map_or(bytes.len(), |end| at + end);
                        let text = &bytes[at..end];
                        let text = text.strip_suffix(b"\r").unwrap_or(text);
                        self.fields.push(Field::InPlace(at..at + text.len()));
                        break (end + 1).min(bytes.len());
                    }
                }
            }
            let Some(after) = self.unquote(bytes, at + 1, last) else {
                return last.then(|| bad(bytes.len(), bytes, "not CSV: a quote is never closed"));
            };
            match bytes[after..] {
                [delimiter, ..] if delimiter == self.delimiter => at = after + 1,
                [b'\n', ..] => break after + 1,
                [b'\r', b'\n', ..] => break after + 2,
                [b'\r'] if !last => return None,
                [] | [b'\r'] => break bytes.len(),
                _ => {
                    let end = memchr(b'\n', &bytes[after..]).map(|end| after + end + 1);
                    let len = match end {
                        Some(end) => end,
                        None if last => bytes.len(),
                        None => return None,
                    };
                    let delimiter = char::from(self.delimiter);
                    let why = format!("not CSV: `{delimiter}` expected after a closing quote");
                    return Some(bad(len, bytes, &why.replace('\t', "\\t")));
                }
            }
        };
        Some(Found {
            len,
            lines: lines(&bytes[..len]),
            record: Record::Fields,
        })
    }

    /// Takes a field up to its closing quote, and returns where it goes on behind that.
    fn unquote(&mut self, bytes: &[u8], start: usize, last: bool) -> Option<usize> {
        let copied = self.copies.len();
        let mut at = start;
        loop {
            let quote = at + memchr(b'"', &bytes[at..])?;
            match bytes.get(quote + 1) {
                Some(b'"') => {
                    self.copies.extend_from_slice(&bytes[at..=quote]);
                    at = quote + 2;
                }
                None if !last => return None, // the next byte may be a quote too
                _ if at == start => {
                    self.fields.push(Field::InPlace(start..quote));
                    return Some(quote + 1);
                }
                _ => {
                    self.copies.extend_from_slice(&bytes[at..quote]);
                    self.fields.push(Field::Copied(copied..self.copies.len()));
                    return Some(quote + 1);
                }
            }
        }
    }

    fn give_up(&mut self, bytes: &[u8]) -> Found {
        let len = memrchr(b'\n', bytes).map_or(bytes.len(), |end| end + 1);
        self.skipping = bytes[len - 1] != b'\n';
        let why = match memchr(b'"', &bytes[..len]) {
            Some(_) => "not CSV: no end within 1 MiB; a quote may be missing",
            None => "not CSV: no line end within 16 MiB",
        };
        bad(len, bytes, why)
    }
}

fn bad(len: usize, bytes: &[u8], why: &str) -> Found {
    Found {
        len,
        lines: lines(&bytes[..len]),
        record: Record::Bad(why.to_owned()),
    }
}

/// How many lines bytes take: the last one may lack its end.
fn lines(bytes: &[u8]) -> u64 {
    let ends = memchr_iter(b'\n', bytes).count() as u64;
    ends + u64::from(bytes.last() != Some(&b'\n'))
}
