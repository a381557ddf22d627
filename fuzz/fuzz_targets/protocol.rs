//! The control sockets: frames that are torn, wrong or hostile, with descriptors that were not
//! announced, at each of the processes that read them.
#![no_main]

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use velo_supervisor::fuzzing::converse;

#[derive(Arbitrary)]
enum Part {
    /// A frame whose header is right.
    Frame {
        fds: u8,
        payload: Vec<u8>,
    },
    Raw {
        fds: u8,
        bytes: Vec<u8>,
    },
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&reader, rest)) = bytes.split_first() else {
        return;
    };
    // The first bit chooses: the rest is sent as it is, or composed of parts.
    if reader & 0x80 == 0 {
        return converse(reader, &[(rest.to_vec(), 0)]);
    }
    let Ok(parts) = Vec::<Part>::arbitrary(&mut Unstructured::new(rest)) else {
        return;
    };
    let pieces: Vec<_> = parts.into_iter().take(16).map(Part::piece).collect();
    converse(reader & 0x7f, &pieces);
});

impl Part {
    fn piece(self) -> (Vec<u8>, u8) {
        match self {
            Part::Frame { fds, payload } => {
                let fds = fds % 6;
                let mut bytes = 0x5645u16.to_le_bytes().to_vec();
                bytes.extend(u16::from(fds).to_le_bytes());
                bytes.extend((payload.len() as u32).to_le_bytes());
                bytes.extend(payload);
                (bytes, fds)
            }
            Part::Raw { fds, bytes } => (bytes, fds % 12),
        }
    }
}
