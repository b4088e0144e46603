;; SPDX-License-Identifier: Apache-2.0
;; Never gets past its instantiation: deadlines hold there as well.
(module
  (memory (export "memory") 1)
  (func $spin (loop $again (br $again)))
  (start $spin)
  (func (export "roadrunner_abi") (result i32) (i32.const 1))
  (func (export "roadrunner_handle") (result i32) (i32.const 0)))
