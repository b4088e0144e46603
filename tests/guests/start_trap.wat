;; SPDX-License-Identifier: Apache-2.0
;; Traps while it is instantiated.
(module
  (memory (export "memory") 1)
  (func $boom unreachable)
  (start $boom)
  (func (export "roadrunner_abi") (result i32) (i32.const 1))
  (func (export "roadrunner_handle") (result i32) (i32.const 0)))
