//! Which texts are numbers: those that read back as the same number.
//!
//! `007`, `+49`, `1_000` and `12E4` are not, because they are codes more often than numbers; nor
//! are whole numbers beyond 64 bits, `nan` and what is too large for a float.

pub enum Number {
    Whole(i64),
    Real(f64),
}

/// Numbers of fewer digits fit into 64 bits, with a sign.
const LONG: usize = 19;

/// The number that `text` is.
pub fn number(text: &[u8]) -> Option<Number> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let whole = count(digits);
    // Most texts are none, and show it at once.
    if whole == 0 && digits.first() != Some(&b'.') || whole > 1 && digits[0] == b'0' {
        return None;
    }
    if whole == digits.len() {
        return integer(text).map(Number::Whole);
    }
    let mut rest = &digits[whole..];
    if let [b'.', after @ ..] = rest {
        let fraction = count(after);
        if whole == 0 && fraction == 0 {
            return None;
        }
        rest = &after[fraction..];
    }
    if let [b'e' | b'E', b'+' | b'-', exponent @ ..] = rest {
        let power = count(exponent);
        if power == 0 {
            return None;
        }
        rest = &exponent[power..];
    }
    if !rest.is_empty() {
        return None;
    }
    let real: f64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    real.is_finite().then_some(Number::Real(real))
}

/// Whether a run of digits is so long that its number may need more than 64 bits.
pub fn has_long_number(text: &[u8]) -> bool {
    // Such a run covers one of every `LONG` bytes.
    let mut at = LONG - 1;
    while at < text.len() {
        if text[at].is_ascii_digit() {
            let before = text[..at].iter().rev();
            let before = before.take_while(|byte| byte.is_ascii_digit()).count();
            let after = count(&text[at..]);
            if before + after >= LONG {
                return true;
            }
            at += after;
        }
        at += LONG;
    }
    false
}

fn count(text: &[u8]) -> usize {
    text.iter().take_while(|byte| byte.is_ascii_digit()).count()
}

fn integer(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_numbers_are_found_wherever_they_are() {
        for digits in 17..22 {
            for before in 0..45 {
                for after in 0..25 {
                    let text = [
                        &b"x".repeat(before)[..],
                        &b"7".repeat(digits),
                        &b"12y".repeat(after),
                    ];
                    let joined = text.concat();
                    let longest = digits + 2 * usize::from(after > 0);
                    assert_eq!(
                        has_long_number(&joined),
                        longest >= LONG,
                        "{before} {digits} {after}"
                    );
                }
            }
        }
        assert!(!has_long_number(b""));
        assert!(!has_long_number(&b"123456789012345678 ".repeat(9)));
    }
}
