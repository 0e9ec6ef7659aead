//! System calls without the C library: their result alone tells of an error. A child that shares our memory shares
//! the `errno` of the thread that made it too, and that thread goes on meanwhile.

use std::ffi::{c_int, c_long};

/// What a system call takes: a number or an address.
pub(super) trait Word {
    fn word(self) -> usize;
}

macro_rules! words {
    ($($number:ty),*) => {$(
        impl Word for $number {
            fn word(self) -> usize {
                // Wider numbers do not occur, and narrower ones are extended as C does it.
                self as usize
            }
        }
    )*};
}
words!(c_int, u32, c_long, u64, usize);

impl<T> Word for *const T {
    fn word(self) -> usize {
        self.expose_provenance()
    }
}

impl<T> Word for *mut T {
    fn word(self) -> usize {
        self.expose_provenance()
    }
}

/// `call!(SYS_dup3, from, to, 0)`: the result, or the negative error number. Unsafe as the call itself is.
macro_rules! call {
    ($number:ident $(, $argument:expr)* $(,)?) => {
        $crate::os::call::raw(libc::$number, $crate::os::call::six([$($crate::os::call::Word::word($argument)),*]))
    };
}
pub(super) use call;

pub(super) fn six<const N: usize>(given: [usize; N]) -> [usize; 6] {
    let mut words = [0; 6];
    words.iter_mut().zip(given).for_each(|(to, from)| *to = from);
    words
}

/// # Safety
/// As the call itself.
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn raw(number: c_long, [a, b, c, d, e, f]: [usize; 6]) -> c_long {
    let result: c_long;
    // SAFETY: the caller vouches for the words; the kernel changes no registers but these.
    unsafe {
        std::arch::asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c,
            in("r10") d, in("r8") e, in("r9") f, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

/// # Safety
/// As the call itself.
#[cfg(target_arch = "aarch64")]
pub(super) unsafe fn raw(number: c_long, [a, b, c, d, e, f]: [usize; 6]) -> c_long {
    let result: c_long;
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("svc 0", in("x8") number, inlateout("x0") a => result, in("x1") b, in("x2") c, in("x3") d,
            in("x4") e, in("x5") f, options(nostack));
    }
    result
}

/// Elsewhere by the C library: whoever makes a child sleeps then until that has left its memory.
///
/// # Safety
/// As the call itself.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(super) unsafe fn raw(number: c_long, [a, b, c, d, e, f]: [usize; 6]) -> c_long {
    // SAFETY: the caller vouches for the words.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    // SAFETY: errno's place is always valid.
    if result == -1 { -c_long::from(unsafe { *libc::__errno_location() }) } else { result }
}
