//! Captures: read as pcap (draft-ietf-opsawg-pcap) or pcapng (draft-ietf-opsawg-pcapng), written as pcapng. Ethernet only.

use std::io::{self, Write};

/// LINKTYPE_ETHERNET.
const ETHERNET: u16 = 1;
/// Block types of pcapng.
const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const SIMPLE: u32 = 3;
const ENHANCED: u32 = 6;
/// Tells the byte order of a pcapng section.
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
/// Options of pcapng blocks.
const COMMENT: u16 = 1;
const NAME: u16 = 2;
const RESOLUTION: u16 = 9;

/// A frame of a capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// Number of the interface it was captured on, from 0.
    pub interface: u32,
    /// Its bytes, as many as were captured.
    pub bytes: Vec<u8>,
    /// Its comment, if it has one.
    pub comment: String,
}

/// The first `most` frames of a capture.
///
/// # Errors
/// Why it cannot be read.
pub fn read(file: &[u8], most: usize) -> Result<Vec<Captured>, String> {
    let magic: [u8; 4] = bytes(file, 0)?;
    match u32::from_le_bytes(magic) {
        SECTION => read_pcapng(file, most),
        0xa1b2_c3d4 | 0xa1b2_3c4d => read_pcap(file, Order::Little, most),
        0xd4c3_b2a1 | 0x4d3c_b2a1 => read_pcap(file, Order::Big, most),
        other => Err(format!(
            "is neither pcap nor pcapng: it begins with {other:#010x}"
        )),
    }
}

/// Byte order of a capture.
#[derive(Clone, Copy)]
enum Order {
    Little,
    Big,
}

impl Order {
    fn long(self, file: &[u8], offset: usize) -> Result<u32, String> {
        let long = bytes(file, offset)?;
        Ok(match self {
            Self::Little => u32::from_le_bytes(long),
            Self::Big => u32::from_be_bytes(long),
        })
    }

    fn short(self, file: &[u8], offset: usize) -> Result<u16, String> {
        let short = bytes(file, offset)?;
        Ok(match self {
            Self::Little => u16::from_le_bytes(short),
            Self::Big => u16::from_be_bytes(short),
        })
    }
}

fn bytes<const N: usize>(file: &[u8], offset: usize) -> Result<[u8; N], String> {
    let found = offset
        .checked_add(N)
        .and_then(|end| file.get(offset..end))
        .and_then(|bytes| bytes.try_into().ok());
    found.ok_or_else(|| format!("ends in the middle of a record, at byte {}", file.len()))
}

fn slice(file: &[u8], offset: usize, length: u32) -> Result<Vec<u8>, String> {
    let found = offset
        .checked_add(length as usize)
        .and_then(|end| file.get(offset..end));
    found
        .map(<[u8]>::to_vec)
        .ok_or_else(|| format!("ends in the middle of a frame, at byte {}", file.len()))
}

fn check_link(kind: u16) -> Result<(), String> {
    if kind == ETHERNET {
        return Ok(());
    }
    Err(format!(
        "has link type {kind}, not Ethernet (1); capture on one interface, not on `any`"
    ))
}

fn read_pcap(file: &[u8], order: Order, most: usize) -> Result<Vec<Captured>, String> {
    // The high bits may say how long a frame check sequence is.
    check_link(order.long(file, 20)? as u16)?;
    let (mut frames, mut offset) = (Vec::new(), 24);
    while offset < file.len() && frames.len() < most {
        let length = order.long(file, offset + 8)?;
        let bytes = slice(file, offset + 16, length)?;
        offset += 16 + bytes.len();
        frames.push(Captured {
            interface: 0,
            bytes,
            comment: String::new(),
        });
    }
    Ok(frames)
}

fn read_pcapng(file: &[u8], most: usize) -> Result<Vec<Captured>, String> {
    let (mut frames, mut offset, mut order) = (Vec::new(), 0, Order::Little);
    let mut interfaces = 0;
    while offset < file.len() && frames.len() < most {
        if u32::from_le_bytes(bytes(file, offset)?) == SECTION {
            order = match u32::from_le_bytes(bytes(file, offset + 8)?) {
                BYTE_ORDER => Order::Little,
                _ => Order::Big,
            };
            interfaces = 0;
        }
        let (kind, total) = (order.long(file, offset)?, order.long(file, offset + 4)?);
        if total < 12 || total % 4 != 0 {
            return Err(format!("has a block of {total} bytes at byte {offset}"));
        }
        let block = slice(file, offset, total)?;
        match kind {
            INTERFACE => {
                check_link(order.short(&block, 8)?)?;
                interfaces += 1;
            }
            ENHANCED | SIMPLE if interfaces == 0 => {
                return Err("has a frame of an interface that it does not describe".into());
            }
            ENHANCED => frames.push(enhanced(&block, order)?),
            SIMPLE => frames.push(Captured {
                interface: 0,
                bytes: slice(&block, 12, order.long(&block, 8)?.min(total - 16))?,
                comment: String::new(),
            }),
            _ => {}
        }
        offset += block.len();
    }
    Ok(frames)
}

fn enhanced(block: &[u8], order: Order) -> Result<Captured, String> {
    let length = order.long(block, 20)?;
    let bytes = slice(block, 28, length)?;
    let mut offset = 28 + bytes.len().next_multiple_of(4);
    let mut comment = String::new();
    // The block ends with its length once more; options before it are optional themselves.
    while offset + 8 <= block.len() {
        let (code, length) = (order.short(block, offset)?, order.short(block, offset + 2)?);
        if code == COMMENT {
            let text = slice(block, offset + 4, length.into())?;
            comment = String::from_utf8_lossy(&text).into_owned();
        }
        if code == 0 {
            break;
        }
        offset += 4 + usize::from(length).next_multiple_of(4);
    }
    Ok(Captured {
        interface: order.long(block, 8)?,
        bytes,
        comment,
    })
}

/// Writes a pcapng file, a packet at a time, each complete when [`Writer::write`] returns.
#[derive(Debug)]
pub struct Writer<W> {
    file: W,
}

impl<W: Write> Writer<W> {
    /// Begins the file with these interfaces.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn new(mut file: W, interfaces: &[&str]) -> io::Result<Self> {
        let mut section = BYTE_ORDER.to_le_bytes().to_vec();
        // Version 1.0, and the section's length is not said.
        section.extend([1, 0, 0, 0]);
        section.extend([0xff; 8]);
        file.write_all(&block(SECTION, &section))?;
        for name in interfaces {
            let mut body = u32::from(ETHERNET).to_le_bytes().to_vec();
            body.extend(0_u32.to_le_bytes());
            body.extend(option(NAME, name.as_bytes()));
            // Nanoseconds.
            body.extend(option(RESOLUTION, &[9]));
            body.extend(option(0, &[]));
            file.write_all(&block(INTERFACE, &body))?;
        }
        file.flush()?;
        Ok(Self { file })
    }

    /// Writes a frame of which `bytes` were captured, of `length`; `time` in nanoseconds since 1970.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(
        &mut self,
        interface: u32,
        time: u64,
        bytes: &[u8],
        length: u32,
        comment: &str,
    ) -> io::Result<()> {
        let (high, low) = ((time >> 32) as u32, time as u32);
        let fields = [interface, high, low, bytes.len() as u32, length];
        let mut body: Vec<u8> = fields
            .iter()
            .flat_map(|field| field.to_le_bytes())
            .collect();
        body.extend(padded(bytes));
        body.extend(option(COMMENT, comment.as_bytes()));
        body.extend(option(0, &[]));
        self.file.write_all(&block(ENHANCED, &body))?;
        self.file.flush()
    }
}

fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u32 + 12).to_le_bytes();
    [&kind.to_le_bytes(), &length[..], body, &length].concat()
}

fn option(code: u16, value: &[u8]) -> Vec<u8> {
    let value = value.get(..usize::from(u16::MAX)).unwrap_or(value);
    let head = [code.to_le_bytes(), (value.len() as u16).to_le_bytes()].concat();
    [head, padded(value)].concat()
}

fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len().next_multiple_of(4), 0);
    padded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn captured(interface: u32, bytes: &[u8], comment: &str) -> Captured {
        Captured {
            interface,
            bytes: bytes.to_vec(),
            comment: comment.into(),
        }
    }

    fn written() -> Vec<u8> {
        let mut file = Vec::new();
        let mut writer = Writer::new(&mut file, &["in", "out"]).unwrap();
        writer
            .write(0, 1, &[1, 2, 3, 4, 5], 60, "drop_no_backend")
            .unwrap();
        writer.write(1, 1 << 33, &[6; 8], 8, "").unwrap();
        file
    }

    #[test]
    fn what_is_written_can_be_read() {
        let expected = [
            captured(0, &[1, 2, 3, 4, 5], "drop_no_backend"),
            captured(1, &[6; 8], ""),
        ];
        assert_eq!(read(&written(), 9), Ok(expected.to_vec()));
        assert_eq!(read(&written(), 1), Ok(expected[..1].to_vec()));
    }

    /// By hand from the drafts, in both byte orders.
    #[test]
    fn pcap_is_read() {
        let little = [
            &[
                0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0,
            ][..],
            &[9, 9, 9, 9, 0, 0, 0, 0, 2, 0, 0, 0, 64, 0, 0, 0, 0xaa, 0xbb],
        ];
        let big = [
            &[
                0xa1, 0xb2, 0x3c, 0x4d, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 1,
            ][..],
            &[9, 9, 9, 9, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 64, 0xaa, 0xbb],
        ];
        for file in [little.concat(), big.concat()] {
            assert_eq!(read(&file, 9), Ok(vec![captured(0, &[0xaa, 0xbb], "")]));
        }
    }

    #[test]
    fn damaged_captures_are_refused() {
        let good = written();
        for length in 0..good.len() {
            // Never a panic; a whole number of blocks is a shorter capture.
            let _ = read(&good[..length], 9);
        }
        assert!(
            read(b"hello, world", 9)
                .unwrap_err()
                .contains("neither pcap")
        );
        assert!(
            read(&good[..good.len() - 3], 9)
                .unwrap_err()
                .contains("ends in")
        );
        let mut other = good.clone();
        // Link type of the first interface: Linux cooked capture.
        other[28 + 8] = 113;
        assert!(read(&other, 9).unwrap_err().contains("link type 113"));
    }
}
