;; SPDX-License-Identifier: Apache-2.0
;; Built for version 2 of the roadrunner ABI, which this host does not have.
(module
  (memory (export "memory") 1)
  (func (export "roadrunner_abi") (result i32) (i32.const 2))
  (func (export "roadrunner_handle") (result i32) (i32.const 0)))
