import{a}from"./chunk-JE5YIHK3.js";import"./chunk-7X5SZDXZ.js";import"./chunk-QMYZDVSA.js";import"./chunk-XSS3YLYI.js";import"./chunk-X3VPJ676.js";import"./chunk-SQE76S5B.js";export{a as FirstSteps};
