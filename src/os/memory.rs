//! Memory that is not needed any more, back to the kernel.

use std::{
    ffi::{c_int, c_void},
    ptr, slice,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

/// All that is not needed any more goes back when the next thread says that it is [`at_rest`].
static WANTED: AtomicBool = AtomicBool::new(false);

/// All threads share one heap: they allocate little, and what a heap of their own keeps free is lost to the
/// others. Before any thread is started.
pub fn share_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointer; refused, it changes nothing.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives back the free pages of the heap, those between used ones too.
pub fn give_heap_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointer, and touches free memory alone.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// That, and forgets the code that has run: a start needs most of it, and what comes after little, which is found
/// in the page cache again.
pub fn give_back() {
    give_heap_back();
    // SAFETY: the callback is of the type that is asked for, and needs no data.
    unsafe { libc::dl_iterate_phdr(Some(forget_code), ptr::null_mut()) };
}

/// Has the same done by the next call of [`at_rest`].
pub fn give_back_at_rest() {
    WANTED.store(true, Relaxed);
}

/// For a thread that is about to wait, as the last thing before: code that it runs after this is found again, and
/// the kernel maps a quarter of a megabyte with each piece.
pub fn at_rest() {
    if WANTED.load(Relaxed) {
        WANTED.store(false, Relaxed);
        give_back();
    }
}

/// Forgets what of an executable or a library nobody can write: its file has the same.
unsafe extern "C" fn forget_code(of: *mut libc::dl_phdr_info, _: usize, _: *mut c_void) -> c_int {
    // SAFETY: valid during the call, as dl_iterate_phdr(3) says.
    let of = unsafe { &*of };
    // SAFETY: as above.
    let headers = unsafe { slice::from_raw_parts(of.dlpi_phdr, of.dlpi_phnum.into()) };
    let fixed = |header: &&libc::Elf64_Phdr| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0;
    // SAFETY: takes no pointer.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
    for header in headers.iter().filter(fixed) {
        // A loader maps whole pages.
        let begin = (of.dlpi_addr + header.p_vaddr) as usize / page * page;
        let end = ((of.dlpi_addr + header.p_vaddr + header.p_memsz) as usize).next_multiple_of(page);
        // SAFETY: a file is mapped there without the right to write, so that nothing is lost.
        unsafe { libc::madvise(begin as *mut c_void, end - begin, libc::MADV_DONTNEED) };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resident() -> usize {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    }

    #[test]
    fn free_pages_between_used_ones_go_back() {
        const SIZE: usize = 64 << 20;
        // Whoever else is tested in this process takes and gives meanwhile.
        let shrinks = |_| {
            // Small enough not to be mapped by themselves; one in a thousand stays.
            let mut all: Vec<Option<Box<[u8]>>> = (0..SIZE / 4096).map(|_| Some(vec![1; 4096].into())).collect();
            all.iter_mut().enumerate().filter(|(n, _)| n % 1000 != 0).for_each(|(_, piece)| *piece = None);
            let before = resident();
            give_back();
            let gone = before.saturating_sub(resident());
            drop(all);
            gone > SIZE / 2
        };
        assert!((0..20).any(shrinks));
    }

    #[test]
    fn code_that_was_forgotten_runs_again() {
        let text = || {
            let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let own = std::env::current_exe().unwrap();
            let mut lines =
                maps.lines().skip_while(|line| !(line.contains(" r-xp ") && line.ends_with(own.to_str().unwrap())));
            let resident = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap().trim();
            resident.trim_end_matches(" kB").parse::<usize>().unwrap()
        };
        // The tests that run beside this one need theirs.
        let shrinks = |_| {
            let before = text();
            give_back();
            text() < before
        };
        assert!((0..20).any(shrinks));
    }
}
