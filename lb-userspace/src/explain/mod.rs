//! Why a packet goes where it goes: frames made for the program to explain, and frames told in words.

pub mod advice;
pub mod decode;
pub mod frame;
pub mod hex;
pub mod pcap;
