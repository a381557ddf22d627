//! What `ps`, `top` and `htop` show of a process: its title, in place of the command that started it.

use std::ffi::CString;
use std::sync::OnceLock;

/// Where the system reads this process's command line from: an address and a length. It stays the same
/// in what is forked.
static COMMAND_LINE: OnceLock<Option<(usize, usize)>> = OnceLock::new();

/// Shows this title for this process. It is cut to the room of the command line that it was started
/// with; where the system does not tell where that is, only its first 15 bytes are shown.
pub fn set_title(title: &str) {
    // A zero byte would end it; there is none in what velo shows.
    let clean: String = title.chars().filter(|c| !c.is_control()).collect();
    if let Ok(name) = CString::new(clean.as_bytes()) {
        // The system cuts it.
        let _ = nix::sys::prctl::set_name(&name);
    }
    let Some((start, len)) = *COMMAND_LINE.get_or_init(command_line) else {
        return;
    };
    // The last byte stays zero: otherwise the system reads on into the environment.
    let mut end = clean.len().min(len - 1);
    while !clean.is_char_boundary(end) {
        end -= 1;
    }
    // SAFETY: the range is what the system says is the argument area of this process: on the stack of
    // its main thread, mapped and writable for as long as it lives. Those who want the arguments have
    // copied them as the process started, or read them as bytes, of which there are as many as before.
    unsafe {
        let area = start as *mut u8;
        std::ptr::copy_nonoverlapping(clean.as_ptr(), area, end);
        std::ptr::write_bytes(area.add(end), 0, len - end);
    }
}

fn command_line() -> Option<(usize, usize)> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    parse(&stat)
}

/// The argument area, of a line of `/proc/PID/stat`.
fn parse(stat: &str) -> Option<(usize, usize)> {
    // The name, in brackets, may contain anything; the state behind it is the third field.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let start: usize = fields.nth(48 - 3)?.parse().ok()?;
    let end: usize = fields.next()?.parse().ok()?;
    let len = end.checked_sub(start)?;
    (start != 0 && len > 1).then_some((start, len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_area_is_found_behind_any_name() {
        let fields: Vec<_> = (3..=52).map(|n| (n * 1000).to_string()).collect();
        let stat = format!("12 (a) name) {}", fields.join(" "));
        assert_eq!(parse(&stat), Some((48_000, 1000)));
        assert_eq!(parse("12 (a) S 1 2 3"), None);
        let hidden = stat.replace("48000 49000", "0 0");
        assert_eq!(parse(&hidden), None);
    }

    #[test]
    fn a_title_is_shown_and_cut_to_its_room() {
        let before = std::fs::read("/proc/self/cmdline").expect("a command line");
        set_title("velo: a té\nst");
        let shown = std::fs::read("/proc/self/cmdline").expect("a command line");
        assert_eq!(shown.len(), before.len());
        let text = String::from_utf8_lossy(&shown);
        assert_eq!(text.trim_end_matches('\0'), "velo: a tést");
        set_title(&"é".repeat(100_000));
        let shown = std::fs::read("/proc/self/cmdline").expect("a command line");
        let text = String::from_utf8(shown).expect("whole characters");
        assert!(text.ends_with('\0') && text.starts_with('é'));
    }
}
