//! Reading a NumPy array's fields without a Python call, and copying its items in C order.
//!
//! The struct behind `numpy.ndarray` is part of NumPy's stable binary interface. It is still compared
//! once with the attributes that Python sees; if they differ, there is no [`ArrayLayout`].

use std::ffi::c_int;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyType;

/// The start of `PyArrayObject_fields`, as every NumPy since 1.7 lays it out.
#[repr(C)]
struct Fields {
    head: ffi::PyObject,
    data: *mut u8,
    ndim: c_int,
    dimensions: *mut isize,
    strides: *mut isize,
    base: *mut ffi::PyObject,
    descr: *mut ffi::PyObject,
    flags: c_int,
}

const C_CONTIGUOUS: c_int = 0x1;
const F_CONTIGUOUS: c_int = 0x2;
const WRITEABLE: c_int = 0x400;

/// NumPy's own limit since 2.0; it was 32 before.
pub const DIMENSIONS_MAX: usize = 64;

/// Proof that `numpy.ndarray` is laid out as expected; the only way to an [`Array`].
pub struct ArrayLayout {
    ndarray: Py<PyType>,
}

/// The fields of one `numpy.ndarray`. Python code may reshape the array or give it another dtype,
/// so each call reads them anew, and two results belong together only if no Python code ran between
/// the calls.
pub struct Array<'a, 'py> {
    object: &'a Bound<'py, PyAny>,
}

impl ArrayLayout {
    /// Looks at a real array through the struct and through Python; `None` when they do not agree.
    pub fn probe(numpy: &Bound<'_, PyAny>) -> PyResult<Option<Self>> {
        let ndarray: Bound<'_, PyType> = numpy.getattr("ndarray")?.cast_into()?;
        let size: usize = ndarray.getattr("__basicsize__")?.extract()?;
        if size < size_of::<Fields>() {
            return Ok(None);
        }
        let plain = ndarray.call1(((3, 5), "<i2"))?;
        let sample = plain.call_method1(
            "__getitem__",
            (pyo3::types::PySlice::new(numpy.py(), 0, 3, 2),),
        )?;
        let layout = Self {
            ndarray: ndarray.unbind(),
        };
        let Some(array) = layout.open(&sample) else {
            return Ok(None);
        };
        let address: usize = sample.getattr("ctypes")?.getattr("data")?.extract()?;
        let shape: Vec<isize> = sample.getattr("shape")?.extract()?;
        let strides: Vec<isize> = sample.getattr("strides")?.extract()?;
        let agree = array.fields().ndim == 2
            && array.fields().data as usize == address
            && *array.shape() == *shape
            && *array.strides() == *strides
            && array.fields().descr == sample.getattr("dtype")?.as_ptr()
            && array.fields().flags & (C_CONTIGUOUS | F_CONTIGUOUS) == 0
            && layout
                .open(&plain)
                .is_some_and(|whole| whole.is_c_contiguous());
        Ok(agree.then_some(layout))
    }

    /// The fields of `obj` if it is exactly a `numpy.ndarray`.
    #[inline]
    pub fn open<'a, 'py>(&self, obj: &'a Bound<'py, PyAny>) -> Option<Array<'a, 'py>> {
        if !std::ptr::eq(obj.get_type_ptr().cast(), self.ndarray.as_ptr()) {
            return None;
        }
        let array = Array { object: obj };
        (array.fields().ndim >= 0 && !array.fields().descr.is_null()).then_some(array)
    }
}

impl<'py> Array<'_, 'py> {
    /// The fields as they are now.
    #[inline(always)]
    fn fields(&self) -> Fields {
        // SAFETY: `ArrayLayout::open` made sure that the object is exactly an `ndarray`, whose
        // struct starts with `Fields` (checked by `probe`); the interpreter is attached, so nobody
        // writes to it.
        unsafe { self.object.as_ptr().cast::<Fields>().read() }
    }

    /// The length of each dimension.
    #[inline]
    pub fn shape(&self) -> Dimensions {
        let Fields {
            ndim, dimensions, ..
        } = self.fields();
        Dimensions::read(ndim, dimensions)
    }

    /// The distance in bytes between neighbours along each dimension.
    #[inline]
    fn strides(&self) -> Dimensions {
        let Fields { ndim, strides, .. } = self.fields();
        Dimensions::read(ndim, strides)
    }

    /// The array's dtype object.
    #[inline]
    pub fn dtype(&self) -> Bound<'py, PyAny> {
        // SAFETY: `descr` was seen not to be null, and the array owns a reference to it.
        unsafe { Bound::from_borrowed_ptr(self.object.py(), self.fields().descr) }
    }

    /// Whether the items lie one after the other in C order.
    #[inline]
    pub fn is_c_contiguous(&self) -> bool {
        self.fields().flags & C_CONTIGUOUS != 0
    }

    /// Whether the items lie one after the other in Fortran order.
    #[inline]
    pub fn is_f_contiguous(&self) -> bool {
        self.fields().flags & F_CONTIGUOUS != 0
    }

    /// Whether the items may be changed through this array.
    #[inline]
    pub fn is_writeable(&self) -> bool {
        self.fields().flags & WRITEABLE != 0
    }

    /// The address of the first item, if the items are contiguous in either order.
    #[inline]
    pub fn contiguous(&self) -> Option<*const u8> {
        let whole = self.is_c_contiguous() || self.is_f_contiguous();
        whole.then(|| self.fields().data.cast_const())
    }

    /// Copies the items, as they lie when the array is contiguous, else in C order.
    ///
    /// # Panics
    /// When `to` is not exactly as long as all items of `item` bytes together.
    pub fn copy_to(&self, item: usize, to: &mut [u8]) {
        let count = self.shape().iter().product::<isize>() as usize;
        assert_eq!(
            to.len(),
            count * item,
            "room for other than the array's items"
        );
        if to.is_empty() {
            return;
        }
        if self.is_c_contiguous() || self.is_f_contiguous() {
            // SAFETY: a contiguous array has all its `count * item` bytes from `data` on; `to` is
            // ours, so it cannot overlap them.
            unsafe { std::ptr::copy_nonoverlapping(self.fields().data, to.as_mut_ptr(), to.len()) };
            return;
        }
        // SAFETY: NumPy holds every array to shape and strides that stay inside its memory.
        unsafe { copy_strided(self.fields().data, &self.shape(), &self.strides(), item, to) };
    }
}

/// One number for each dimension.
pub struct Dimensions {
    numbers: [isize; DIMENSIONS_MAX],
    len: usize,
}

impl Dimensions {
    #[inline]
    fn read(ndim: c_int, from: *const isize) -> Self {
        let len = usize::try_from(ndim).unwrap_or(0);
        assert!(
            len <= DIMENSIONS_MAX,
            "an array of more dimensions than NumPy allows"
        );
        let mut numbers = [0; DIMENSIONS_MAX];
        for (index, number) in numbers[..len].iter_mut().enumerate() {
            // SAFETY: an array with dimensions has `ndim` entries in both of its tables, and no
            // Python code ran since the pointer was read.
            *number = unsafe { from.add(index).read() };
        }
        Self { numbers, len }
    }
}

impl std::ops::Deref for Dimensions {
    type Target = [isize];

    #[inline]
    fn deref(&self) -> &[isize] {
        &self.numbers[..self.len]
    }
}

/// Copies items of `item` bytes from strided memory to `to`, in C order.
///
/// # Safety
/// Every item that `shape` and `strides` reach from `from` must be readable, none may overlap `to`,
/// and `to` must be exactly as long as all of them together.
unsafe fn copy_strided(
    from: *const u8,
    shape: &[isize],
    strides: &[isize],
    item: usize,
    to: &mut [u8],
) {
    // Trailing dimensions that lie one after the other are one run: a cropped picture is copied row
    // by row.
    let (mut run, mut outer) = (item, shape.len());
    while outer > 0 && (strides[outer - 1] == run as isize || shape[outer - 1] == 1) {
        run *= shape[outer - 1] as usize;
        outer -= 1;
    }
    let (shape, strides) = (&shape[..outer], &strides[..outer]);
    // SAFETY: the caller's promise holds for the same items, now read in runs of `run` bytes.
    unsafe {
        match run {
            1 => copy_runs::<1>(from, shape, strides, run, to),
            2 => copy_runs::<2>(from, shape, strides, run, to),
            4 => copy_runs::<4>(from, shape, strides, run, to),
            8 => copy_runs::<8>(from, shape, strides, run, to),
            _ => copy_runs::<0>(from, shape, strides, run, to),
        }
    }
}

/// One level of [`copy_strided`]; `RUN` is the run's length where it is known when compiling, else
/// 0.
///
/// # Safety
/// As for [`copy_strided`], with `run` bytes for an item.
unsafe fn copy_runs<const RUN: usize>(
    from: *const u8,
    shape: &[isize],
    strides: &[isize],
    run: usize,
    to: &mut [u8],
) {
    let run = if RUN == 0 { run } else { RUN };
    let Some((&len, rest)) = shape.split_first() else {
        // SAFETY: one readable run, as the caller promises.
        unsafe { std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), run) };
        return;
    };
    let chunk = to.len() / len as usize;
    for (index, part) in to.chunks_exact_mut(chunk).enumerate() {
        // SAFETY: `index` is below `len`, so the promise of the caller covers what is reached from
        // here; a chunk is as long as one step of this dimension.
        unsafe {
            let start = from.offset(index as isize * strides[0]);
            if rest.is_empty() {
                std::ptr::copy_nonoverlapping(start, part.as_mut_ptr(), run);
            } else {
                copy_runs::<RUN>(start, rest, &strides[1..], run, part);
            }
        }
    }
}
