//! The serial port COM1: output polled, input announced by its interrupt.
//!
//! Output waits until the UART takes it, so nothing is lost, but for no longer than a UART needs: one that stops
//! responding is given up.

use uart_16550::backend::PioBackend;
use uart_16550::spec::registers::IER;
use uart_16550::{BaudRate, Config, Uart16550};

/// COM1's first register.
const COM1: u16 = 0x3f8;
/// How often the UART is asked whether it can take more before it is given up. Even at 300 baud the queue of sixteen
/// bytes empties in half a second, and a port access takes at least half a microsecond on hardware.
const PATIENCE: u32 = 4_000_000;

/// COM1, or nothing.
pub struct Serial {
    uart: Option<Uart16550<PioBackend>>,
}

impl Serial {
    /// No port: what is written is dropped.
    pub const fn absent() -> Self {
        Self { uart: None }
    }

    /// Looks for COM1 and sets it to `baud` bits a second, 8 data bits, no parity, one stop bit, and has it interrupt
    /// when a byte has arrived (once its line is open: [`crate::irq`]).
    pub fn open(baud: u32) -> Self {
        let mut serial = Self::assume();
        let config = Config { baud_rate: BaudRate::Custom(baud), interrupts: IER::DATA_READY, ..Config::default() };
        let found = serial.uart.as_mut().is_some_and(|uart| uart.init(config).is_ok());
        if found { serial } else { Self::absent() }
    }

    /// COM1 as it stands, without looking or setting: for the last words of a machine that has opened it before.
    pub fn assume() -> Self {
        // SAFETY: on a PC the eight ports from 0x3f8 on are COM1's or nobody's; nothing but this module uses them.
        Self { uart: unsafe { Uart16550::new_port(COM1) }.ok() }
    }

    /// Writes bytes, CR before each LF.
    pub fn write(&mut self, bytes: &[u8]) {
        for line in bytes.split_inclusive(|&byte| byte == b'\n') {
            match line.strip_suffix(b"\n") {
                Some(line) => {
                    self.send(line);
                    self.send(b"\r\n");
                }
                None => self.send(line),
            }
        }
    }

    fn send(&mut self, mut bytes: &[u8]) {
        let Some(uart) = &mut self.uart else { return };
        let mut patience = PATIENCE;
        while !bytes.is_empty() {
            let sent = uart.send_bytes(bytes);
            bytes = &bytes[sent..];
            if sent > 0 {
                patience = PATIENCE;
                continue;
            }
            patience -= 1;
            if patience == 0 {
                self.uart = None;
                return;
            }
            core::hint::spin_loop();
        }
    }

    /// A byte that has arrived.
    pub fn try_read(&mut self) -> Option<u8> {
        self.uart.as_mut()?.try_receive_byte().ok()
    }
}
