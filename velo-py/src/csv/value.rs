//! Which texts are numbers: those that read back as the same number.
//!
//! `007`, `+49`, `1_000` and `12E4` are not, because they are codes more often than numbers; nor
//! are whole numbers beyond 64 bits, `nan` and what is too large for a float.

pub enum Number {
    Whole(i64),
    Real(f64),
}

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

fn count(text: &[u8]) -> usize {
    text.iter().take_while(|byte| byte.is_ascii_digit()).count()
}

fn integer(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}
