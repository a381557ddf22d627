//! What stands in for the ends of a ring in a build without process mode: types that have no value. What
//! is written for both modes compiles with them, and nothing of it remains.

/// Declares such a type, with the methods that the rest of the crate calls.
macro_rules! absent {
    ($(#[$doc:meta])* $type:ident { $(fn $name:ident($($arg:ty),*) $(-> $result:ty)?;)* }) => {
        $(#[$doc])*
        pub enum $type {}

        impl $type {
            $(
                #[doc = concat!("As with process mode, if there were a `", stringify!($type), "`.")]
                pub fn $name(&self, $(_: $arg),*) $(-> $result)? {
                    match *self {}
                }
            )*
        }
    };
}
