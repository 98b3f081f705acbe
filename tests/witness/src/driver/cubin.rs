//! Machine code: what its ELF file says of its kernels, and the PTX that the same compiler made of the same source.

use std::collections::BTreeMap;
use std::path::Path;

/// What a cubin says of a kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Facts {
    pub registers: u32,
    pub static_shared: u32,
}

/// A cubin's architecture, such as 80, and its kernels.
#[derive(Debug, Default, PartialEq)]
pub struct Cubin {
    pub architecture: u32,
    pub kernels: BTreeMap<String, Facts>,
}

/// The machine code of NVIDIA's GPUs.
const EM_CUDA: u16 = 190;

fn number<const N: usize>(image: &[u8], at: usize) -> Option<u64> {
    let mut bytes = [0u8; 8];
    bytes[..N].copy_from_slice(image.get(at..at + N)?);
    Some(u64::from_le_bytes(bytes))
}

/// Section headers: (name, type info, offset, bytes).
fn sections(image: &[u8]) -> Option<Vec<(String, u32, usize, usize)>> {
    let (table, size) = (number::<8>(image, 0x28)? as usize, number::<2>(image, 0x3a)? as usize);
    let (count, names) = (number::<2>(image, 0x3c)? as usize, number::<2>(image, 0x3e)? as usize);
    let header = |i: usize| {
        let at = table + i * size;
        let (offset, bytes) =
            (number::<8>(image, at + 0x18)? as usize, number::<8>(image, at + 0x20)? as usize);
        Some((number::<4>(image, at)? as usize, number::<4>(image, at + 0x2c)? as u32, offset, bytes))
    };
    let names = header(names)?;
    let named = |i: usize| {
        let (name, info, offset, bytes) = header(i)?;
        let text = image.get(names.2 + name..names.2 + names.3)?;
        let end = text.iter().position(|b| *b == 0)?;
        Some((String::from_utf8_lossy(&text[..end]).into_owned(), info, offset, bytes))
    };
    (0..count).map(named).collect()
}

/// Reads an ELF image; `None` where it is none of a GPU.
pub fn read(image: &[u8]) -> Option<Cubin> {
    if number::<2>(image, 0x12)? != u64::from(EM_CUDA) {
        return None;
    }
    // Since CUDA 13 (ABI version 8) the architecture is the flags' second byte, before it was the first.
    let (abi, flags) = (*image.get(8)?, number::<4>(image, 0x30)? as u32);
    let architecture = if abi >= 8 { flags >> 8 & 0xff } else { flags & 0xff };
    let mut cubin = Cubin { architecture, kernels: BTreeMap::new() };
    let sections = sections(image)?;
    for (name, info, _, _) in &sections {
        if let Some(kernel) = name.strip_prefix(".text.") {
            cubin.kernels.entry(kernel.to_string()).or_default().registers = info >> 24;
        }
    }
    for (name, _, _, bytes) in &sections {
        if let Some(facts) = name.strip_prefix(".nv.shared.").and_then(|kernel| cubin.kernels.get_mut(kernel))
        {
            facts.static_shared = *bytes as u32;
        }
    }
    Some(cubin)
}

/// Bytes of an ELF image, by its own headers.
pub fn length(start: &[u8; 64]) -> usize {
    let field = |at, n| start[at..at + n].iter().rev().fold(0usize, |sum, b| sum << 8 | *b as usize);
    let sections = field(0x28, 8) + field(0x3a, 2) * field(0x3c, 2);
    sections.max(field(0x20, 8) + field(0x36, 2) * field(0x38, 2))
}

/// The PTX of this machine code among the files `NAME.ptx_ARCH` of a folder: the one with the same kernels.
///
/// # Errors
/// There is none.
pub fn ptx_of(cubin: &Cubin, folder: &Path) -> Result<String, String> {
    let listed = std::fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut files: Vec<_> = listed.filter_map(|e| Some(e.ok()?.path())).collect();
    files.sort();
    let architecture = format!("ptx_{}", cubin.architecture);
    for file in files {
        let extension = file.extension().unwrap_or_default().to_string_lossy();
        if extension.trim_end_matches(|c: char| c.is_ascii_alphabetic()) != architecture {
            continue;
        }
        let text = std::fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        let entries = text.split(".entry ").skip(1).filter_map(|t| t.split('(').next());
        let mut entries: Vec<&str> = entries.map(str::trim).collect();
        entries.sort_unstable();
        if entries.iter().eq(cubin.kernels.keys()) {
            return Ok(text);
        }
    }
    let some: Vec<&String> = cubin.kernels.keys().take(3).collect();
    let (folder, architecture) = (folder.display(), cubin.architecture);
    Err(format!(
        "{folder} has no *.{architecture_file} with the kernels {some:?}, ..",
        architecture_file = format_args!("ptx_{architecture}")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file of these sections (name, info, bytes), with flags and ABI version as nvcc writes them.
    fn image(abi: u8, flags: u32, sections: &[(&str, u32, u64)]) -> Vec<u8> {
        let names: Vec<&str> = [""].into_iter().chain(sections.iter().map(|s| s.0)).collect();
        let text: String = names.iter().map(|n| format!("{n}\0")).collect();
        let mut image = vec![0u8; 64];
        image[..9].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0x41, abi]);
        image[0x12..0x14].copy_from_slice(&EM_CUDA.to_le_bytes());
        image[0x30..0x34].copy_from_slice(&flags.to_le_bytes());
        image.extend(text.as_bytes());
        let table = image.len() as u64;
        image[0x28..0x30].copy_from_slice(&table.to_le_bytes());
        image[0x3a..0x3c].copy_from_slice(&64u16.to_le_bytes());
        image[0x3c..0x3e].copy_from_slice(&(sections.len() as u16 + 1).to_le_bytes());
        let first = ("", 0, text.len() as u64);
        for (i, (name, info, bytes)) in [first].iter().chain(sections).enumerate() {
            let mut header = [0u8; 64];
            let place: usize = names[..i].iter().map(|n| n.len() + 1).sum();
            assert_eq!(*name, names[i]);
            header[..4].copy_from_slice(&(place as u32).to_le_bytes());
            header[0x18..0x20].copy_from_slice(&64u64.to_le_bytes());
            header[0x20..0x28].copy_from_slice(&bytes.to_le_bytes());
            header[0x2c..0x30].copy_from_slice(&info.to_le_bytes());
            image.extend(header);
        }
        image
    }

    #[test]
    fn kernels_registers_and_architecture_of_machine_code() {
        let sections =
            [(".text.one", 40 << 24 | 7, 128), (".text.two", 255 << 24, 64), (".nv.shared.two", 0, 2048)];
        for (abi, flags, architecture) in [(8, 0x0600_5a04, 90), (8, 0x0600_5004, 80), (7, 0x0055_0550, 80)] {
            let image = image(abi, flags, &sections);
            assert_eq!(length(image[..64].try_into().unwrap()), image.len());
            let cubin = read(&image).unwrap();
            assert_eq!(cubin.architecture, architecture);
            let facts = |name: &str| cubin.kernels[name];
            assert_eq!(facts("one"), Facts { registers: 40, static_shared: 0 });
            assert_eq!(facts("two"), Facts { registers: 255, static_shared: 2048 });
            // The last header ends with fields that nobody reads.
            assert!(
                (0..image.len() - 16).all(|end| read(&image[..end]).is_none()),
                "an image that is cut off"
            );
        }
    }

    #[test]
    fn the_ptx_of_machine_code_has_its_kernels() {
        let folder = std::env::temp_dir().join(format!("witness-ptx-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
        write("a.ptx_80", ".visible .entry one(\n)\n{}\n.visible .entry two(\n)\n{}\n");
        write("a.ptx_90a", "// for 9.0\n.visible .entry one(\n)\n{}\n.visible .entry two(\n)\n{}\n");
        write("b.ptx_80", ".visible .entry three(\n)\n{}\n");
        let kernels = |names: &[&str]| names.iter().map(|n| (n.to_string(), Facts::default())).collect();
        let cubin = |architecture, names: &[&str]| Cubin { architecture, kernels: kernels(names) };
        assert!(ptx_of(&cubin(90, &["one", "two"]), &folder).unwrap().contains("for 9.0"));
        assert!(ptx_of(&cubin(80, &["three"]), &folder).unwrap().contains("three"));
        assert!(ptx_of(&cubin(80, &["one"]), &folder).unwrap_err().contains("no *.ptx_80 with the kernels"));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
