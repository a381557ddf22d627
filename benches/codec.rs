//! The cost of encoding and of decoding one value, without a call from Python.
//!
//! The values are those of `velo bench --scenario codec`, which measures the same work with the call
//! from Python, and compares it with other libraries: the difference between both is the call.
//!
//! - `encode`: into memory that is allocated anew for each value.
//! - `decode`: with large buffers copied, as for a stream whose results are copied.
//!
//! `benches/run.py rust codec`; one line of it with, for instance, `benches/run.py rust codec dict`.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use velo_core::fuzzing::{CopyMemory, codec, encode, module};

fn main() -> PyResult<()> {
    let mut criterion = Criterion::default()
        .sample_size(50)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    Python::initialize();
    Python::attach(|py| {
        // The module that is linked here, not the one that is installed.
        let modules = py.import("sys")?.getattr("modules")?;
        modules.set_item("velo._core", module(py))?;
        let values = py.import("velo.bench.codec")?.getattr("VALUES")?;
        for (name, make) in values.cast_into::<PyDict>()?.iter() {
            bench(
                py,
                &mut criterion,
                &name.extract::<String>()?,
                &make.call0()?,
            )?;
        }
        Ok::<_, PyErr>(())
    })?;
    criterion.final_summary();
    Ok(())
}

fn bench(
    py: Python<'_>,
    criterion: &mut Criterion,
    name: &str,
    value: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let payload = encode(value)?;
    let decoder = codec(py)?;
    let again = decoder.decode(py, &payload, &mut CopyMemory)?;
    assert!(again.get_type().is(&value.get_type()));

    let mut group = criterion.benchmark_group("encode");
    group.throughput(Throughput::Bytes(payload.len() as u64));
    group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
        bencher.iter(|| encode(black_box(value)).expect("a value that was encoded before"));
    });
    group.finish();

    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Bytes(payload.len() as u64));
    group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
        bencher.iter(|| {
            let decoded = decoder.decode(py, black_box(&payload), &mut CopyMemory);
            decoded.expect("bytes that were decoded before")
        });
    });
    group.finish();
    Ok(())
}
