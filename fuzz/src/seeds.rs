//! Writes the first corpora of the targets: bytes that velo itself writes.

use std::fs;
use std::path::Path;

use libfuzzer_sys as _; // the coverage runtime that everything is built with
use velo_fuzz::python;

fn main() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let write = |target: &str, number: usize, bytes: &[u8]| {
        let folder = corpus.join(target);
        fs::create_dir_all(&folder).expect("a folder for the corpus");
        fs::write(folder.join(format!("seed-{number:03}")), bytes).expect("a seed");
    };
    python::start();
    for (number, mut bytes) in python::examples().into_iter().enumerate() {
        bytes.insert(0, number as u8);
        write("codec", number, &bytes);
    }
    // Of every kind, with numbers that are small and text that is text.
    for kind in 2..16u8 {
        for (number, len) in [0, 4, 12, 16, 44, 64].into_iter().enumerate() {
            let mut bytes = vec![kind];
            bytes.extend((0..len).map(|at| if at % 4 == 0 { b'a' } else { 0 }));
            write("control", usize::from(kind) * 6 + number, &bytes);
        }
    }
    for (number, (reader, mut bytes)) in
        velo_supervisor::fuzzing::examples().into_iter().enumerate()
    {
        bytes.insert(0, reader);
        write("protocol", number, &bytes);
    }
    // A life of a worker: a client, a request, a fork, a link, an idle while, an end.
    let life = [
        [0, 0, 0, 0],
        [1, 2, 0, 1],
        [5, 1, 77, 0],
        [6, 1, 0, 0],
        [7, 1, 1, 0],
        [14, 1, 2, 0],
        [15, 50, 0, 0],
        [3, 0, 1, 1],
        [9, 1, 1, 0],
        [15, 50, 0, 0],
        [15, 50, 0, 0],
        [12, 1, 1, 0],
        [13, 1, 0, 0],
    ];
    write("pool", 0, life.as_flattened());
    let storm = [
        [0, 0, 0, 2],
        [1, 4, 0, 0],
        [2, 4, 0, 1],
        [1, 4, 0, 2],
        [5, 1, 1, 0],
        [5, 2, 1, 0],
        [11, 1, 0, 0],
        [10, 2, 0, 0],
        [15, 9, 0, 0],
        [8, 1, 1, 0],
        [15, 0, 253, 0],
        [15, 0, 254, 0],
        [15, 0, 255, 9],
    ];
    write("pool", 1, storm.as_flattened());
}
