//! A worker that writes over its own link: this process says so, or goes on, and never falls or hangs.

use std::time::Instant;

use velo_supervisor::stream::{Connection, Stream, StreamError};

use crate::daemon::{Daemon, PATIENCE, open, options};

/// What is aimed at here may make other values of what a function gets and yields.
const GARBLES: [&str; 7] = [
    "data", "lengths", "moves", "heap", "anything", "indices", "counts",
];

#[test]
fn a_worker_that_writes_over_its_link_harms_nobody_else() {
    let Some(daemon) = Daemon::start(&[]) else {
        return;
    };
    let mut aims = open(&daemon.connect(), "aims");
    aims.send(&()).expect("send");
    let aims: Vec<String> = aims.recv().expect("recv").expect("aims");
    assert!(aims.len() > 10);
    for aim in &aims {
        for seed in 0..3 {
            scene(&daemon.connect(), aim, seed);
        }
    }
}

/// Two streams on one worker, of which one writes over the link that they share.
fn scene(velo: &Connection, aim: &str, seed: u32) {
    let mut one = options();
    one.workers = Some(1);
    one.buffer = 16;
    let mut both: Vec<Option<Stream>> = (0..2)
        .map(|_| Some(velo.open("functions:citizen", &one).expect("a stream")))
        .collect();
    for number in 0..60 {
        for (which, place) in both.iter_mut().enumerate() {
            let Some(stream) = place else {
                continue;
            };
            let mut said = Vec::new();
            let outcome = (|| {
                if which == 0 && number % 20 == 10 {
                    stream.send_timeout(&(aim, 3 * seed + number), PATIENCE)?;
                    said.push(stream.recv_timeout::<i64>(PATIENCE)?);
                }
                stream.send_timeout(&number, PATIENCE)?;
                said.push(stream.recv_timeout(PATIENCE)?);
                Ok::<_, StreamError>(())
            })();
            let garbles = GARBLES.contains(&aim);
            match outcome {
                Ok(()) if garbles => {}
                Ok(()) => assert_eq!(
                    said.last(),
                    Some(&Some(2 * i64::from(number))),
                    "{aim} {seed}"
                ),
                Err(StreamError::TimedOut) => panic!("{aim} {seed}: it hangs at {number}"),
                Err(StreamError::Decode(_)) if garbles => {}
                Err(error) => {
                    let lost = matches!(
                        error,
                        StreamError::Corrupted(_) | StreamError::WorkerDied(_) | StreamError::Ended
                    );
                    let raised = matches!(error, StreamError::Function(_));
                    assert!(lost || raised && garbles, "{aim} {seed}: {error:?}");
                    *place = None;
                }
            }
        }
    }
    drop(both);
    // The connection is as good as before, soon.
    let deadline = Instant::now() + PATIENCE;
    loop {
        match right(velo) {
            Ok(()) => return,
            Err(error) => assert!(Instant::now() < deadline, "{aim} {seed}: {error:?}"),
        }
    }
}

fn right(velo: &Connection) -> Result<(), StreamError> {
    let mut one = options();
    one.workers = Some(1);
    let mut stream = velo.open("functions:totals", &one)?;
    for (event, total) in [(1, 1), (2, 3)] {
        stream.send(&event)?;
        match stream.recv_timeout::<i32>(PATIENCE)? {
            Some(found) if found == total => {}
            other => return Err(StreamError::Decode(format!("{other:?} instead of {total}"))),
        }
    }
    Ok(())
}
