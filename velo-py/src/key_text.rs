//! The text of a key, for people who look at a worker: as it travels when the key opens, and as the
//! worker keeps it.

/// How many bytes of a key's text travel.
pub const LONGEST: usize = 200;

/// So many bytes take no memory of their own.
const INLINE: usize = 22;

/// The text of one key.
pub enum KeyText {
    /// Its length, and its bytes.
    Short(u8, [u8; INLINE]),
    Long(Box<[u8]>),
}

impl Default for KeyText {
    fn default() -> Self {
        KeyText::Short(0, [0; INLINE])
    }
}

impl KeyText {
    /// As it has travelled.
    #[inline]
    pub fn new(bytes: &[u8]) -> Self {
        match u8::try_from(bytes.len()) {
            Ok(len) if bytes.len() <= INLINE => {
                let mut room = [0; INLINE];
                room[..bytes.len()].copy_from_slice(bytes);
                KeyText::Short(len, room)
            }
            _ => KeyText::Long(bytes.into()),
        }
    }

    pub fn bytes(&self) -> &[u8] {
        match self {
            KeyText::Short(len, bytes) => &bytes[..usize::from(*len).min(INLINE)],
            KeyText::Long(bytes) => bytes,
        }
    }

    /// The text itself. Whatever wrote it, it can be shown.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(self.bytes()).into_owned()
    }
}

/// The text at the beginning of what travels, behind its length; and what follows.
pub fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&len, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(len))
}

/// A string as a key.
pub fn quoted(text: &str) -> String {
    format!("'{text}'")
}

/// As much of a text as travels.
pub fn shorten(text: &str) -> &str {
    if text.len() <= LONGEST {
        return text;
    }
    let end = (0..=LONGEST).rev().find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_kept_as_it_came() {
        for text in [
            "",
            "ann",
            "x".repeat(INLINE).as_str(),
            "y".repeat(LONGEST).as_str(),
        ] {
            assert_eq!(KeyText::new(text.as_bytes()).text(), text);
        }
        assert_eq!(KeyText::new(b"\xff").text(), "\u{fffd}");
    }

    #[test]
    fn what_follows_a_text_is_told_from_it() {
        assert_eq!(split(b"\x02abcd"), Some((&b"ab"[..], &b"cd"[..])));
        assert_eq!(split(b"\x00"), Some((&b""[..], &b""[..])));
        assert_eq!(split(b"\x03ab"), None);
        assert_eq!(split(b""), None);
    }

    #[test]
    fn it_is_cut_between_characters() {
        let text = "é".repeat(LONGEST);
        assert_eq!(shorten(&text), "é".repeat(LONGEST / 2));
        let text = format!("x{text}");
        assert_eq!(shorten(&text).len(), LONGEST - 1);
        assert_eq!(shorten("short"), "short");
    }
}
