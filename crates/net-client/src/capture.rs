//! A filter that writes the frames it sees to a file, as packet analysers read it.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::filter::{Filter, Passing, Verdict};

/// Tells the time since the Unix epoch.
pub type Clock = Box<dyn Fn() -> Duration + Send + Sync>;

/// Writes each Ethernet frame that it sees in the pcap format, and lets it pass. [QEMU: filter-dump]
///
/// A frame is written with one call, without the `virtio_net_hdr` in front: as it crosses the link,
/// so one whose checksum or segmentation is left to the host shows just that. When a write fails the
/// capture ends and [`error`](Self::error) tells; frames pass all the same.
#[doc(alias = "filter-dump")]
pub struct Capture {
    /// Held while a frame is written; nothing else is called meanwhile.
    writer: Mutex<Writer>,
    max_len: u32,
    clock: Clock,
}

struct Writer {
    /// `None`: a write has failed.
    out: Option<Box<dyn Write + Send>>,
    record: Vec<u8>,
    frames: u64,
    error: Option<Arc<io::Error>>,
}

/// Bytes of a frame that are written by default. [QEMU: filter-dump's maxlen]
pub const CAPTURE_MAX_LEN: u32 = 65536;

/// Seconds and microseconds, in the byte order of the writer.
const MAGIC: u32 = 0xa1b2_c3d4;
const VERSION: (u16, u16) = (2, 4);
/// LINKTYPE_ETHERNET.
const ETHERNET: u32 = 1;
const RECORD_HEADER: usize = 16;

impl Capture {
    /// Makes the file, or empties it, and writes up to `max_len` bytes of each frame to it, with the
    /// host's time.
    ///
    /// # Errors
    /// When the file cannot be made or written.
    #[doc(alias = "net_dump_state_init")]
    pub fn create(path: impl AsRef<Path>, max_len: u32) -> io::Result<Arc<Self>> {
        let clock = || {
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
        };
        Self::new(Box::new(File::create(path)?), max_len, Box::new(clock))
    }

    /// Writes up to `max_len` bytes of each frame to `out`, with the time that `clock` tells.
    ///
    /// # Errors
    /// When the file's header cannot be written.
    pub fn new(
        mut out: Box<dyn Write + Send>,
        max_len: u32,
        clock: Clock,
    ) -> io::Result<Arc<Self>> {
        let mut header = Vec::with_capacity(24);
        header.extend(MAGIC.to_ne_bytes());
        header.extend(VERSION.0.to_ne_bytes());
        header.extend(VERSION.1.to_ne_bytes());
        // Time zone and accuracy, which nobody fills in.
        header.extend([0; 8]);
        header.extend(max_len.to_ne_bytes());
        header.extend(ETHERNET.to_ne_bytes());
        out.write_all(&header)?;
        Ok(Arc::new(Self {
            writer: Mutex::new(Writer {
                out: Some(out),
                record: Vec::new(),
                frames: 0,
                error: None,
            }),
            max_len,
            clock,
        }))
    }

    /// Frames written so far.
    pub fn frames(&self) -> u64 {
        self.lock().frames
    }

    /// Why the capture has ended, if it has.
    pub fn error(&self) -> Option<Arc<io::Error>> {
        self.lock().error.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Filter for Capture {
    fn filter(&self, passing: &Passing<'_>) -> Verdict {
        let mut writer = self.lock();
        let Writer {
            out: Some(out),
            record,
            ..
        } = &mut *writer
        else {
            return Verdict::Pass;
        };
        let now = (self.clock)();
        let original = u32::try_from(passing.ethernet_len()).unwrap_or(u32::MAX);
        let captured = original.min(self.max_len);
        record.clear();
        // The format has 32 bits for the seconds, which come round in 2106.
        let seconds = u32::try_from(now.as_secs() & u64::from(u32::MAX)).unwrap_or(0);
        record.extend(seconds.to_ne_bytes());
        record.extend(now.subsec_micros().to_ne_bytes());
        record.extend(captured.to_ne_bytes());
        record.extend(original.to_ne_bytes());
        record.resize(RECORD_HEADER.saturating_add(captured as usize), 0);
        passing.copy_ethernet(record.get_mut(RECORD_HEADER..).unwrap_or_default());
        match out.write_all(record) {
            Ok(()) => writer.frames = writer.frames.wrapping_add(1),
            Err(error) => {
                tracing::error!(%error, "the capture of network traffic ends");
                writer.error = Some(Arc::new(error));
                writer.out = None;
            }
        }
        Verdict::Pass
    }
}

impl fmt::Debug for Capture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let writer = self.lock();
        f.debug_struct("Capture")
            .field("frames", &writer.frames)
            .field("error", &writer.error)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Frame;
    use crate::filter::Direction;
    use crate::iovec::IoVec;

    /// A file that takes so many bytes.
    #[derive(Clone)]
    struct Disk(Arc<Mutex<Vec<u8>>>, usize);

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut disk = self.0.lock().unwrap();
            if disk.len() + bytes.len() > self.1 {
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            disk.extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn capture(size: usize, max_len: u32) -> (Arc<Capture>, Disk) {
        let disk = Disk(Arc::default(), size);
        let clock = || Duration::new(0x1_0000_0007, 123_456_789);
        let capture = Capture::new(Box::new(disk.clone()), max_len, Box::new(clock)).unwrap();
        (capture, disk)
    }

    fn see(capture: &Capture, bytes: &[u8], header_len: usize) {
        let iov = [IoVec::of_bytes(bytes)];
        let frame = Frame {
            token: None,
            iov: &iov,
            len: bytes.len(),
        };
        let passing = Passing {
            direction: Direction::Tx,
            header_len,
            frame: &frame,
        };
        assert_eq!(capture.filter(&passing), Verdict::Pass);
    }

    fn words(bytes: &[u8]) -> Vec<u32> {
        let words = bytes.chunks_exact(4);
        words
            .map(|w| u32::from_ne_bytes(w.try_into().unwrap()))
            .collect()
    }

    #[test]
    fn the_file_has_its_header_and_a_record_a_frame_without_the_vnet_header() {
        let (capture, disk) = capture(usize::MAX, 8);
        see(&capture, b"0123456789abETHER", 12);
        see(&capture, b"longer than eight bytes", 0);
        see(&capture, b"short", 12);
        let file = disk.0.lock().unwrap();
        let head = words(&file[..24]);
        assert_eq!(
            head,
            [
                0xa1b2_c3d4,
                words(&[[2u16, 4].map(u16::to_ne_bytes).concat()].concat())[0],
                0,
                0,
                8,
                1
            ]
        );
        assert_eq!(words(&file[24..40]), [7, 123_456, 5, 5]);
        assert_eq!(&file[40..45], b"ETHER");
        assert_eq!(words(&file[45..61]), [7, 123_456, 8, 23]);
        assert_eq!(&file[61..69], b"longer t");
        assert_eq!(words(&file[69..]), [7, 123_456, 0, 0]);
        assert_eq!(capture.frames(), 3);
    }

    #[test]
    fn a_full_disk_ends_the_capture_and_not_the_traffic() {
        let (capture, disk) = capture(24 + 16 + 5, 100);
        for _ in 0..3 {
            see(&capture, b"ETHER", 0);
        }
        assert_eq!(disk.0.lock().unwrap().len(), 24 + 16 + 5);
        assert_eq!(capture.frames(), 1);
        let error = capture.error().unwrap();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    }
}
