import{a}from"./chunk-5ERXAMEU.js";import"./chunk-UFEFE2MF.js";import"./chunk-VPGDYV5C.js";import"./chunk-SFBWDKW4.js";import"./chunk-HONXV5ZE.js";import"./chunk-SQE76S5B.js";export{a as FirstSteps};
